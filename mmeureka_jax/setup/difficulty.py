"""Training on problems whose measured difficulty is within a range (`data.difficulty`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmeureka_jax.config.schema import DataConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import parse_json, read_text

if TYPE_CHECKING:
    from mmeureka_jax.setup.problems import CheckedProblems

logger = logging.getLogger(__name__)


def read_difficulty(path: Path, *, allow_cut: bool = False) -> dict[str, dict[str, Any]]:
    """The rows of a difficulty file by problem id.

    Args:
        allow_cut: a last line that a kill cut short is left out.

    Raises:
        UserError: no such file, or a line that is not such a row.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the difficulty file: {error}") from None
    rows = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            if not 0 <= row["accuracy"] <= 1:
                raise ValueError
            rows[str(row["id"])] = row
        except (ValueError, KeyError, TypeError):
            if allow_cut and number == len(lines):
                break
            raise UserError(
                f'{path}:{number}: not a row of `mmeureka data difficulty`, {{"id": ..., "accuracy": 0 to 1}}'
            ) from None
    return rows


def rows_by_difficulty(config: DataConfig, problems: CheckedProblems) -> list[int]:
    """The usable rows whose difficulty is within `data.difficulty_lower` and `data.difficulty_upper`, in order; those
    of accuracy a are there 1 to `data.difficulty_copies` times, in proportion to a (1 - a).

    Raises:
        UserError: a usable problem has no difficulty, or none is within the range.
    """
    if config.difficulty is None:
        return problems.indices
    known = read_difficulty(Path(config.difficulty))
    ids = {row: problems.source[row].id for row in problems.indices}
    unknown = [problem for problem in ids.values() if problem not in known]
    if unknown:
        raise UserError(
            f"{config.difficulty} has no difficulty of {len(unknown)} of {len(ids)} usable problems of {config.train} "
            f"({', '.join(map(repr, unknown[:3]))}{', ...' if len(unknown) > 3 else ''}); make it with `mmeureka data "
            "difficulty` on the same data"
        )
    chosen = []
    for row, problem in ids.items():
        accuracy = known[problem]["accuracy"]
        if config.difficulty_lower <= accuracy <= config.difficulty_upper:
            chosen += [row] * max(1, round(config.difficulty_copies * 4 * accuracy * (1 - accuracy)))
    if not chosen:
        raise UserError(
            f"{config.difficulty}: no problem has an accuracy from {config.difficulty_lower:g} to "
            f"{config.difficulty_upper:g}; widen data.difficulty_lower and data.difficulty_upper"
        )
    logger.info("%s: %d of %d problems are within the range", config.difficulty, len(set(chosen)), len(ids))
    return chosen
