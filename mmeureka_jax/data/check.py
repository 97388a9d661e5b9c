"""Which rows of a data set can be used, and why the others cannot: all that can be known before step 0.

`check_problems` visits every row once, in parallel: its form, its pictures, its length in tokens, its id, its gold
answer. The report is cached under all that it depends on, so that the next start with the same data is quick.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import mmeureka_jax
from mmeureka_jax.config.schema import AccuracyRule, RewardConfig
from mmeureka_jax.data.pictures import picture_notes, picture_size, read_picture
from mmeureka_jax.data.problems import ProblemSource
from mmeureka_jax.data.record import ImageRef, Problem, RowError
from mmeureka_jax.errors import UserError, printable
from mmeureka_jax.files import parse_json, write_atomic
from mmeureka_jax.process.console import progress as progress_bar
from mmeureka_jax.rewards.workers import RewardWorkers

_MAX_THREADS = 16
_MAX_REWARD_WORKERS = 8
_GOLDS_AT_ONCE = 256
_WINDOW = 1024  # rows in flight
_TOKEN = re.compile(r"<[|｜][^|｜<>\s]{1,40}[|｜]>|</s>")  # special tokens, which decoding leaves out
_TOKENIZATION_FILES = (
    "tokenizer*",
    "chat_template*",
    "*processor_config.json",
    "config.json",
    "vocab.json",
    "merges.txt",
)

logger = logging.getLogger(__name__)


class MeasuresPrompts(Protocol):
    """What the check needs of a `Processor`: (tokens, windows), or RowError for a prompt that cannot be used."""

    def measure(self, problem: Problem, /) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used."""

    id: str | None  # None where the row is too broken to have one
    row: int
    kind: str  # what `CheckReport.summary` groups by
    reason: str


@dataclass(frozen=True)
class Note:
    """Something to know about a row that is used."""

    id: str
    row: int
    kind: str  # what `CheckReport.summary` groups by
    text: str


@dataclass(frozen=True)
class CheckReport:
    """The rows that can be used, by number, and those that cannot."""

    usable: list[int]
    rejected: list[Rejected]  # by row
    max_tokens: int  # the longest usable prompt's; 0 if they were not measured
    max_windows: int
    notes: list[Note] = field(default_factory=list)  # on usable rows

    @property
    def num_rows(self) -> int:
        return len(self.usable) + len(self.rejected)

    def summary(self) -> str:
        """A small table of how many rows can be used, and of the reasons why others cannot."""
        kinds = Counter(rejected.kind for rejected in self.rejected)
        lines = [("rows", self.num_rows), ("usable", len(self.usable)), ("rejected", len(self.rejected))]
        lines += [(f"  {kind}", count) for kind, count in kinds.most_common()]
        lines += [(f"note: {kind}", count) for kind, count in Counter(note.kind for note in self.notes).most_common()]
        if self.max_tokens:
            lines += [("longest prompt, tokens", self.max_tokens), ("most image windows", self.max_windows)]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {number:>7}" for name, number in lines)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CheckReport:
        rejected = [Rejected(**rejected) for rejected in values["rejected"]]
        return cls(**values | {"rejected": rejected, "notes": [Note(**note) for note in values["notes"]]})


def check_problems(
    source: ProblemSource,
    processor: MeasuresPrompts | None,
    *,
    accuracy: AccuracyRule | None = "instruct",
    decode_images: bool = True,
    unique_ids: bool = True,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> CheckReport:
    """Finds every row that cannot be used.

    Args:
        processor: measures prompts from picture headers, and refuses those that are too long; None measures nothing.
        accuracy: the rule that must be able to parse the gold answers; None leaves them unchecked.
        decode_images: decode every picture, which finds truncated files; else only their headers are read.
        unique_ids: refuse a row whose id an earlier one has.
        cache_dir: where reports are kept; default: `mmeureka` in `XDG_CACHE_HOME` (or `~/.cache`).
    """
    cache = _cache_file(source, processor, (accuracy, decode_images, unique_ids), cache_dir)
    if (cached := _read_cache(cache, source, progress)) is not None:
        return cached
    rows = _check_rows(source, processor, decode_images, progress)
    reasons = [row.rejected for row in rows]
    if unique_ids:
        _find_duplicates(rows, reasons)
    if accuracy is not None:
        _check_golds(rows, reasons, accuracy, progress)
    good = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    report = CheckReport(
        usable=[row.row for row in good],
        rejected=[reason for reason in reasons if reason is not None],
        max_tokens=max((row.num_tokens for row in good), default=0),
        max_windows=max((row.num_windows for row in good), default=0),
        notes=[note for row in good for note in row.notes],
    )
    _write_cache(cache, report, _digest(row.image_state for row in rows))
    return report


@dataclass(frozen=True)
class _CheckedRow:
    """What the check knows of a row before it is compared with other rows."""

    row: int
    id: str | None
    answer: str | None = None
    num_tokens: int = 0
    num_windows: int = 0
    image_state: str = ""  # state of the picture files, to notice when they change
    notes: tuple[Note, ...] = ()
    rejected: Rejected | None = None


def _rejected(row: int, error: RowError) -> Rejected:
    return Rejected(error.problem_id, row, error.kind, str(error))


def _check_rows(
    source: ProblemSource, processor: MeasuresPrompts | None, decode_images: bool, progress: bool
) -> list[_CheckedRow]:
    def check(row: int) -> _CheckedRow:
        try:
            problem = source[row]
        except RowError as error:
            return _CheckedRow(row, error.problem_id, image_state=str(error), rejected=_rejected(row, error))
        checked = partial(_CheckedRow, row, problem.id, problem.answer, image_state=image_state(problem))
        try:
            for ref in problem.images:
                _check_image(ref, problem.id, decode_images)
            notes = _notes(problem, row, decode_images)
            num_tokens, num_windows = processor.measure(problem) if processor is not None else (0, 0)
        except RowError as error:
            return checked(rejected=_rejected(row, error))
        # One row must not end the check. The exception's name shows whether the fault is in the row or in this package.
        except Exception as error:
            logger.debug("row %d cannot be checked", row, exc_info=True)
            reason = f"{source.where(row)}: problem {problem.id!r}: cannot be checked ({type(error).__name__}: {error})"
            return checked(rejected=Rejected(problem.id, row, "failed check", printable(reason)))
        return checked(num_tokens=num_tokens, num_windows=num_windows, notes=notes)

    return list(_in_threads(check, range(len(source)), f"check {source.name}", progress))


def _in_threads(function: Callable[[int], Any], rows: range, description: str, progress: bool) -> Iterable[Any]:
    """`function` of every row, in order. Decoding pictures, reading files and tokenizing release Python's lock."""
    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool,
        progress_bar(len(rows), description, unit="row", enabled=progress) as bar,
    ):
        for start in range(0, len(rows), _WINDOW):
            for result in pool.map(function, rows[start : start + _WINDOW]):
                bar.update()
                yield result


def _check_image(ref: ImageRef, problem_id: str, decode: bool) -> None:
    try:
        if decode:
            read_picture(ref)
        else:
            picture_size(ref)
    except UserError as error:
        missing = ref.path is not None and not os.path.exists(ref.path)
        raise RowError(
            f"problem {problem_id!r}: {error}", "missing image" if missing else "broken image", problem_id
        ) from None


def _notes(problem: Problem, row: int, decode: bool) -> tuple[Note, ...]:
    notes = [
        Note(
            problem.id,
            row,
            f"column {column!r} looks like a picture, not read",
            f"column {column!r} looks like a picture and is not read",
        )
        for column in problem.unread
    ]
    if decode:
        notes += [Note(problem.id, row, *note) for ref in problem.images for note in picture_notes(ref)]
    return tuple(notes)


def _find_duplicates(rows: list[_CheckedRow], reasons: list[Rejected | None]) -> None:
    """Rejects every row whose id an earlier row has."""
    first: dict[str, int] = {}
    for row in rows:
        if row.id is None:
            continue
        earlier = first.setdefault(row.id, row.row)
        if earlier != row.row and reasons[row.row] is None:
            reason = f"problem {row.id!r}: row {earlier} has the same id; give each row its own"
            reasons[row.row] = Rejected(row.id, row.row, "duplicate id", reason)


def _check_golds(rows: list[_CheckedRow], reasons: list[Rejected | None], rule: AccuracyRule, progress: bool) -> None:
    """Rejects rows whose gold answer the accuracy rule cannot compare with anything."""
    good = [row for row in rows if reasons[row.row] is None and row.answer is not None]
    answers = list(dict.fromkeys(row.answer for row in good if row.answer is not None))
    if not answers:
        return
    problems: dict[str, str | None] = {}
    config = RewardConfig(accuracy=rule, workers=min(os.cpu_count() or 1, _MAX_REWARD_WORKERS))
    with (
        RewardWorkers(config) as rewards,
        progress_bar(len(answers), "check gold answers", unit="answer", enabled=progress) as bar,
    ):
        for start in range(0, len(answers), _GOLDS_AT_ONCE):
            chunk = answers[start : start + _GOLDS_AT_ONCE]
            problems |= zip(chunk, rewards.check_golds(chunk), strict=True)
            problems |= {
                answer: f"holds {found[0]}, which no response shows"
                for answer in chunk
                if (found := _TOKEN.search(answer))
            }
            bar.update(len(chunk))
    for row in good:
        if (problem := problems[row.answer or ""]) is not None:
            reason = f"problem {row.id!r}: the gold answer {problem}; correct it or drop the row"
            reasons[row.row] = Rejected(row.id, row.row, "gold answer does not parse", reason)


# The cache of reports.


def image_state(problem: Problem) -> str:
    """The sizes and times of the problem's picture files."""
    states = []
    for ref in problem.images:
        if ref.path is not None:
            try:
                status = ref.path.stat()
                states.append(f"{ref.path}:{status.st_size}:{status.st_mtime_ns}")
            except OSError as error:
                states.append(f"{ref.path}:{error.strerror}")
    return " ".join(states)


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _cache_file(source: ProblemSource, processor: Any, settings: tuple[Any, ...], cache_dir: Path | None) -> Path:
    """Where the report of this check is kept: named by all that it depends on, except the state of picture files."""
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmeureka"
    key = [
        _rules_state(),
        source.fingerprint(),
        repr(source.settings),
        repr(settings),
        hashlib.sha256(pickle.dumps(processor)).hexdigest(),
    ]
    if isinstance(folder := getattr(processor, "path", None), Path):
        files = sorted({file for pattern in _TOKENIZATION_FILES for file in folder.glob(pattern)})
        key += [f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return cache_dir / "checks" / f"{_digest(key)}.json"


def _rules_state() -> str:
    """Names the code that judges rows: this package's readers and rules, and the libraries under them."""
    package = Path(mmeureka_jax.__file__).parent
    files = sorted([*package.glob("data/*.py"), *package.glob("rewards/**/*.py")])
    libraries = [f"{name} {version(name)}" for name in ("math-verify", "pillow", "transformers")]
    return _digest([*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files), *libraries])


def _read_cache(path: Path, source: ProblemSource, progress: bool) -> CheckReport | None:
    try:
        entry = parse_json(path.read_bytes())
        report = CheckReport.from_json(entry["report"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: not a check report (%r); checking again", path, error)
        return None
    if not source.embeds_images and entry["image_state"] != _digest(_image_states(source, progress)):
        return None
    return report


def _image_states(source: ProblemSource, progress: bool) -> Iterable[str]:
    def state(row: int) -> str:
        try:
            return image_state(source[row])
        except RowError as error:
            return str(error)

    return _in_threads(state, range(len(source)), f"picture files of {source.name}", progress)


def _write_cache(path: Path, report: CheckReport, image_state: str) -> None:
    entry = {"report": report.to_json(), "image_state": image_state}
    try:
        write_atomic(path, json.dumps(entry).encode())
    except UserError as error:
        logger.warning("the check is not cached: %s", error)
