"""`eval.html` of judged benchmarks: their problems with pictures, from the released rows, and the judged answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmeureka_jax.data.pictures import read_picture
from mmeureka_jax.data.record import ImageRef, RowError
from mmeureka_jax.evaluation.judging import Answer
from mmeureka_jax.evaluation.release import ReleasedRow, ReleasedRows
from mmeureka_jax.process.console import progress
from mmeureka_jax.report.answer_browser import LEFT_OUT, Problem
from mmeureka_jax.report.eval_page import Section, write_eval_page
from mmeureka_jax.report.judges import judges_in
from mmeureka_jax.report.thumbnails import to_jpeg_uri

PICTURE_CHARACTERS = 16_000_000  # of all pictures in a page
_SIDE = 300  # pixels
_QUALITY = 75
_AT_ONCE = 32  # pictures that are scaled down before the next look at how many characters are left


@dataclass(frozen=True)
class Judged:
    """A benchmark whose answers are judged: rows as in NAME.jsonl, results as in results.json."""

    released: ReleasedRows
    rows: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]


def with_problems(
    released: ReleasedRows, rows: Iterable[Mapping[str, Any]], answers: Iterable[Answer]
) -> list[dict[str, Any]]:
    """The rows of `judging.judge` as NAME.jsonl has them: with the response, and with what was asked, so that a folder
    says by itself what its answers are to.

    Args:
        answers: those that were judged, in the same order.
    """
    benchmark = released.benchmark
    asked = {
        row.id: {
            "answer": str(benchmark.answer(row.columns)),
            "question": str(benchmark.question(row.columns)),
            "groups": {name: list(values) for name, values in benchmark.groups(row.columns).items()},
            "overall": bool(benchmark.counts_overall(row.columns)),
        }
        for row in released.rows
    }
    return [{**row, **asked[row["id"]], "response": one.response} for row, one in zip(rows, answers, strict=True)]


def write_page(judged: Sequence[Judged], folder: Path) -> Path:
    """Writes `eval.html` into `folder`, and returns the file."""
    left = PICTURE_CHARACTERS
    sections = []
    for place, one in enumerate(judged):
        section = _section(one, left // (len(judged) - place))
        left -= sum(len(picture or "") for problem in section.problems for picture in set(problem.pictures))
        sections.append(section)
    return write_eval_page(sections, folder)


def _section(judged: Judged, characters: int) -> Section:
    """
    Args:
        characters: that the pictures may take in the page.
    """
    benchmark = judged.released.benchmark
    asked: dict[str, Mapping[str, Any]] = {}
    right: dict[str, bool] = {}
    for row in judged.rows:
        asked.setdefault(row["id"], row)
        right[row["id"]] = right.get(row["id"], True) and all(row[judge] for judge in judges_in(row))
    shown = [row for row in judged.released.rows if row.id in asked]
    in_order = sorted(shown, key=lambda row: right[row.id])  # those with a wrong answer first
    pictures = dict(_pictures(judged.released, in_order, characters))
    problems = [
        Problem(row.id, one["question"], one["answer"], one["groups"], pictures[row.id])
        for row in shown
        for one in [asked[row.id]]
    ]
    published = [dataclasses.asdict(one) for one in benchmark.settings.published]
    return Section(benchmark.name, benchmark.settings.title, judged.results, published, problems, judged.rows)


def _pictures(
    released: ReleasedRows, rows: Sequence[ReleasedRow], characters: int
) -> Iterator[tuple[str, list[str | None]]]:
    """The ids of rows with their pictures, scaled down; LEFT_OUT from the first row on that does not fit."""
    made: dict[str, str | None] = {}  # problems may share pictures
    shown: set[str] = set()
    left = characters
    name = released.benchmark.name
    with ThreadPoolExecutor() as threads, progress(len(rows), f"pictures of {name}", unit="problem") as bar:
        for start in range(0, len(rows), _AT_ONCE):
            part = [
                (row.id, [(_key(ref), ref) for ref in _refs(released, row)]) for row in rows[start : start + _AT_ONCE]
            ]
            new = {key: ref for _, own in part for key, ref in own if key not in made}
            if left > 0:
                made.update(zip(new, threads.map(_thumbnail, new.values()), strict=True))
            for problem, own in part:
                keys = [key for key, _ in own]
                cost = sum(len(made.get(key) or "") for key in set(keys) - shown)
                if left >= cost and made.keys() >= set(keys):
                    left -= cost
                    shown.update(keys)
                else:
                    left = 0
                yield problem, [made[key] if key in shown else LEFT_OUT for key in keys]
            bar.update(len(part))


def _refs(released: ReleasedRows, row: ReleasedRow) -> list[ImageRef | None]:
    try:
        return list(released.problem(row).images)
    except RowError:
        return [None]


def _key(ref: ImageRef | None) -> str:
    if ref is None:
        return ""
    return str(ref.path) if ref.data is None else hashlib.sha256(ref.data).hexdigest()


def _thumbnail(ref: ImageRef | None) -> str | None:
    if ref is None:
        return None
    try:
        return to_jpeg_uri(read_picture(ref), _SIDE, _QUALITY)
    except RowError:
        return None
