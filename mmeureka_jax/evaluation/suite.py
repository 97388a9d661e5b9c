"""Suites: several benchmarks in one YAML file, and how each is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmeureka_jax.config.reading import did_you_mean
from mmeureka_jax.config.schema import PROMPT_STYLES
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.options import EvalOptions

_OWN = Path(__file__).parents[1] / "eval"
_TEXTS = {"prompt_style": PROMPT_STYLES}
_INTEGERS = ("min_pixels", "max_pixels", "max_prompt_tokens", "max_new_tokens", "batch_size", "n", "top_k", "seed")
_NUMBERS = ("temperature", "top_p")
_KEYS = ("path", *_TEXTS, *_INTEGERS, *_NUMBERS)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A benchmark of a suite.

    Attributes:
        path: its released files.
        settings: fields of `EvalOptions` that the suite sets.
    """

    name: str
    path: Path
    settings: Mapping[str, Any]

    def options(self, others: EvalOptions) -> EvalOptions:
        """How it is asked: as the suite says, else as `others` do."""
        return dataclasses.replace(others, **self.settings)


def read_suite(name: str | Path, folder: Path) -> list[Entry]:
    """The benchmarks of a suite, whose paths start from `folder`.

    Args:
        name: a YAML file, or the name of a suite that comes with the project: `papers`.

    Raises:
        UserError: the file cannot be read, or it has other keys or values than a suite has.
    """
    file = _OWN / f"{name}.yaml" if str(name) in own_suites() else Path(name)
    if not file.exists():
        raise UserError(f"{name}: no such file; give a suite's YAML file, or one of {', '.join(own_suites())}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    benchmarks = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(benchmarks, dict) or len(content) != 1 or not benchmarks:
        raise UserError(f"{file}: expected `benchmarks:` with a path for each, such as `mmk12: {{path: MMK12}}`")
    return [_entry(str(name), value, folder, f"{file}: benchmarks.{name}") for name, value in benchmarks.items()]


def own_suites() -> list[str]:
    """The names of the suites that come with the project."""
    return sorted(file.stem for file in _OWN.glob("*.yaml"))


def _entry(name: str, value: Any, folder: Path, where: str) -> Entry:
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise UserError(f"{where}: expected a path, such as {{path: {name}}}")
    for key, setting in value.items():
        if key not in _KEYS:
            raise UserError(f"{where}.{key}: no such key; there are {', '.join(_KEYS)}{did_you_mean(str(key), _KEYS)}")
        if (wanted := _wrong(key, setting)) is not None:
            raise UserError(f"{where}.{key}: must be {wanted}; got {setting!r}")
    return Entry(name, folder / value["path"], {key: setting for key, setting in value.items() if key != "path"})


def _wrong(key: str, value: Any) -> str | None:
    """What a value of this key has to be, if it is something else."""
    if key in _TEXTS:
        return None if value in _TEXTS[key] else f"one of {', '.join(_TEXTS[key])}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in _INTEGERS:
        least = 0 if key in ("top_k", "seed") else 1
        return None if is_number and isinstance(value, int) and least <= value < 2**28 else "a positive integer"
    if key == "top_p":
        return None if is_number and 0 < value <= 1 else "a number above 0 and at most 1"
    if key == "temperature":
        return None if is_number and 0 <= value < 1e30 else "0 or a positive number"
    return None
