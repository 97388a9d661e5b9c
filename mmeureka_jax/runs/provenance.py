"""What an exported checkpoint says about its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmeureka_jax.config.checks import config_problems
from mmeureka_jax.config.limits import out_of_range
from mmeureka_jax.config.reading import known_part
from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import read_json

PROVENANCE_FILE = "mmeureka_jax.json"
CARD_FILE = "README.md"


def how_asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a run asks and grades problems, from its config as JSON, by the names that an export writes."""
    keys = [("data", key) for key in ("prompt_style", "min_pixels", "max_pixels")]
    keys += [("sampler", "max_new_tokens"), ("reward", "accuracy")]
    return {key: config[section][key] for section, key in keys}


def read_provenance(checkpoint: Path) -> dict[str, Any]:
    """What `export_run` wrote about the run into a checkpoint folder; empty for a folder that it did not write.

    Raises:
        UserError: the file is there and is not what `export_run` writes.
    """
    path = checkpoint / PROVENANCE_FILE
    if not path.exists():
        return {}
    content = read_json(path)
    # Where each key is in a config: the config's checks hold for it here too.
    sections = {
        "data": ("prompt_style", "min_pixels", "max_pixels"), "sampler": ("max_new_tokens",), "reward": ("accuracy",)
    }  # fmt: skip
    tree = {section: {key: content[key] for key in keys if key in content} for section, keys in sections.items()}
    base_dtype = content.get("lora_base_dtype")
    lora = None if base_dtype is None else {"base_dtype": base_dtype}
    try:
        config = known_part(Config, tree | {"model": {"checkpoint": "any", "lora": lora}}, "it")
        problems = out_of_range(config) or config_problems(config)
    except UserError as error:
        problems = str(error).splitlines()
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}; export the run again, or remove the file")
    known = {key: getattr(getattr(config, section), key) for section, keys in sections.items() for key in keys}
    return content | {key: value for key, value in known.items() if key in content}
