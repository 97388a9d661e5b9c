"""Prompts that `mmeureka sample` and `mmeureka score` read from a file.

Every row is looked at before the first token is computed: rows that cannot be used are all named in one message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.identity import ids_and_pictures
from mmeureka_jax.models.batch import length_buckets
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.prompts import PromptStyle
    from mmeureka_jax.data.record import Problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptOptions:
    """The input rows, and how they become prompts. None leaves a limit to the checkpoint.

    Attributes:
        image_root: the folder that pictures lie in; None: that of the input file.
        style: the instructions around each question.
        batch_size: prompts that are computed together.
    """

    input: Path
    image_root: str | None = None
    style: PromptStyle = "plain"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_prompt_tokens: int | None = None
    batch_size: int = 16


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, all of which can be used.

    Attributes:
        problems: its rows.
        longest: tokens of the longest prompt.
        sizes: what batches of them are padded to.
        identity: what says whether another reading gives the same prompts, as JSON.
    """

    processor: Processor
    problems: list[Problem]
    longest: int
    sizes: PromptSizes
    identity: dict[str, Any]


def read_prompts(
    opened: OpenedPolicy,
    options: PromptOptions,
    *,
    unique_ids: bool,
    prepare: Callable[[ProblemSource, Processor], ProblemSource] = lambda source, processor: source,
) -> PromptFile:
    """Reads and checks all rows.

    Args:
        prepare: makes the problems that are asked of those of the file.

    Raises:
        UserError: some rows cannot be used; all of them are named.
    """
    from mmeureka_jax.data.check import check_problems
    from mmeureka_jax.data.problems import open_problems
    from mmeureka_jax.data.processor import Processor

    processor = Processor.from_checkpoint(
        opened.checkpoint,
        prompt_style=options.style,
        max_prompt_tokens=options.max_prompt_tokens or opened.policy.config.text.max_position_embeddings,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )
    source = prepare(open_problems(str(options.input), root=options.image_root, require_answer=False), processor)
    report = check_problems(source, processor, accuracy=None, unique_ids=unique_ids)
    if report.rejected:
        reasons = [_with_place(rejected.reason, source.where(rejected.row)) for rejected in report.rejected]
        raise UserError(
            f"{options.input}: {len(reasons)} of {len(source)} rows cannot be used, so none was:\n  "
            + "\n  ".join(reasons)
        )
    if report.notes:
        logger.warning("%s: `mmeureka data check` has the rows of these notes\n%s", options.input, report.summary())
    problems = [source[row] for row in report.usable]
    settings = {key: value for key, value in asdict(options).items() if key not in ("input", "image_root")}
    return PromptFile(
        processor,
        problems,
        report.max_tokens,
        PromptSizes(options.batch_size, length_buckets(report.max_tokens), report.max_windows),
        settings | {"input": source.fingerprint(), "pictures": ids_and_pictures(problems)[1]},
    )


def _with_place(reason: str, place: str) -> str:
    """A reason that names the row's place, if it does not already."""
    return reason if place in reason else f"{place}: {reason}"


def floats(values: Float[np.ndarray, " T"], what: str = "log-probabilities") -> list[float]:
    """float32 values as the shortest decimals that give them back.

    Raises:
        UserError: one of them is not finite; JSON has no NaN.
    """
    if not np.isfinite(values).all():
        raise UserError(f"the policy gives {what} that are not finite; are its weights those of a broken run?")
    return [float(str(value)) for value in np.asarray(values, np.float32)]
