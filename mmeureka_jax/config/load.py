"""A config from a YAML file and overrides, and into a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmeureka_jax.config.reading import load_tree, to_dict
from mmeureka_jax.config.schema import Config
from mmeureka_jax.config.yaml_text import dump_yaml
from mmeureka_jax.files import write_atomic


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, the chain of files that its `base:` names, and dotted overrides such as `rl.loss=cpgd`.

    Later wins: the base, the file over it, the overrides in order. Sections are merged key by key; lists are replaced.
    `path=None` starts from the defaults.

    Raises:
        UserError: a missing or malformed file, unknown keys, values of the wrong type; each with its file and line.
    """
    return load_tree(Config, path, overrides)


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved tree, every field present, as YAML that `load_config` reads back to an equal config.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomic(Path(path), dump_yaml(to_dict(config)).encode())
