"""Problems, opened and checked before step 0."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmeureka_jax.config.schema import AccuracyRule, DataConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import write_atomic
from mmeureka_jax.hosts import every_host, is_main
from mmeureka_jax.process.console import plural, progress, waiting

if TYPE_CHECKING:
    from mmeureka_jax.data.check import CheckReport
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem

logger = logging.getLogger(__name__)

_ROWS_SHOWN = 20  # rows that cannot be used, in messages


def open_processor(checkpoint: Path, data: DataConfig) -> Processor:
    """The checkpoint's processor, for prompts as the config asks for them."""
    from mmeureka_jax.data.processor import Processor

    return Processor.from_checkpoint(
        checkpoint,
        prompt_style=data.prompt_style,
        max_prompt_tokens=data.max_prompt_tokens,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
    )


@dataclass(frozen=True)
class CheckedProblems:
    """A problem source and the rows of it that can be used.

    Attributes:
        spec: what the user calls the source.
    """

    spec: str
    source: ProblemSource
    report: CheckReport

    @property
    def indices(self) -> list[int]:
        """The rows that can be used, in order."""
        return self.report.usable

    def describe(self) -> str:
        """How a command's header names them."""
        pictures = "with pictures" if self.report.max_windows else "without pictures"
        return f"{self.spec}, {len(self.indices)} of {self.report.num_rows} rows can be used, {pictures}"


def open_checked(
    spec: str,
    data: DataConfig,
    processor: Processor,
    *,
    require_answer: bool = True,
    also_check: Callable[[Problem, Processor], object] | None = None,
    report_file: Path | None = None,
    bars: bool = True,
    source: ProblemSource | None = None,
) -> CheckedProblems:
    """Opens and checks a dataset. Unusable rows are logged, and written to `report_file`, by id and reason.

    Args:
        data: where pictures may lie.
        require_answer: every problem needs a gold answer that can be read.
        also_check: raises RowError for a problem that cannot be used for another reason.
        bars: progress is shown as a bar.
        source: the problems, where `spec` is only what they are called.

    Raises:
        UserError: no row can be used, or hosts see other rows.
    """
    from mmeureka_jax.data.check import check_problems
    from mmeureka_jax.data.problems import open_problems

    if source is None:
        with waiting(f"reading {spec}"):
            source = open_problems(
                spec, root=data.root, allow_outside_root=data.allow_outside_root, require_answer=require_answer
            )
    show = bars and is_main()
    accuracy: AccuracyRule | None = "instruct" if require_answer else None  # ungraded answers need not parse
    with nullcontext() if show else waiting(f"checking {spec}, {plural(len(source), 'row')}"):
        report = check_problems(source, processor, accuracy=accuracy, progress=show)
        if also_check is not None:
            report = _check_further(source, report, processor, also_check, show)
    _check_that_hosts_agree(spec, [report.usable, report.max_windows, source.fingerprint()])
    if is_main():
        if report.rejected or report.notes:
            left_out = "rows that cannot be used are left out" if report.rejected else "every row can be used"
            logger.warning("%s: %s\n%s", spec, left_out, _describe(report, report_file))
        if report_file is not None:
            write_atomic(report_file, json.dumps(report.to_json(), indent=1).encode())
    if not report.usable:
        raise UserError(f"{spec}: no row can be used\n{_describe(report, report_file)}")
    return CheckedProblems(spec, source, report)


def _check_further(
    source: ProblemSource,
    report: CheckReport,
    processor: Processor,
    check: Callable[[Problem, Processor], object],
    show: bool,
) -> CheckReport:
    """The report without the rows that `check` raises RowError for. Its sizes are still those of all rows."""
    from mmeureka_jax.data.check import Rejected
    from mmeureka_jax.data.record import RowError

    usable: list[int] = []
    rejected = list(report.rejected)
    with progress(len(report.usable), f"check responses of {source.name}", unit="row", enabled=show) as bar:
        for row in report.usable:
            try:
                check(source[row], processor)
                usable.append(row)
            except RowError as error:
                rejected.append(Rejected(error.problem_id, row, error.kind, str(error)))
            bar.update()
    kept = set(usable)
    notes = [note for note in report.notes if note.row in kept]
    return dataclasses.replace(report, usable=usable, rejected=sorted(rejected, key=lambda one: one.row), notes=notes)


def _check_that_hosts_agree(spec: str, seen: Any) -> None:
    """Raises the same UserError everywhere if hosts have `seen` different data: they would draw different problems."""
    digest = np.frombuffer(hashlib.sha256(json.dumps(seen).encode()).digest(), np.uint32)[:2]  # JAX has no 64 bits here
    digests = every_host(digest)
    others = [host for host, other in enumerate(digests) if (other != digests[0]).any()]
    if others:
        raise UserError(
            f"{spec}: hosts {others} see other usable rows than host 0; give all hosts the same data files and pictures"
        )


def _describe(report: CheckReport, report_file: Path | None) -> str:
    """The counts of a check, its rejected rows by id and reason (the first few, where the others are), and notes."""
    lines = [
        report.summary(),
        *(f"row {rejected.row}: {rejected.reason}" for rejected in report.rejected[:_ROWS_SHOWN]),
    ]
    if len(report.rejected) > _ROWS_SHOWN:
        others = f"{report_file} has all of them" if report_file is not None else "`mmeureka data check` names them all"
        lines.append(f"... and {len(report.rejected) - _ROWS_SHOWN} more; {others}")
    lines += [f"row {note.row}: problem {note.id!r}: {note.text}" for note in report.notes[:_ROWS_SHOWN]]
    if len(report.notes) > _ROWS_SHOWN:
        lines.append(f"... and {len(report.notes) - _ROWS_SHOWN} more such notes")
    return "\n".join(lines)
