"""Two evaluations of the same benchmarks: how their scores differ, how sure that is, and which problems changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.intervals import paired_bootstrap
from mmeureka_jax.evaluation.judging import RESULTS_FILE
from mmeureka_jax.files import parse_json, read_json
from mmeureka_jax.report.answer_browser import LEFT_OUT, Problem, pictures_of
from mmeureka_jax.report.eval_comparison import Compared, Difference, write_comparison_page
from mmeureka_jax.report.eval_page import PAGE_FILE
from mmeureka_jax.report.judges import MODEL, RULES

_KEYS = ("id", "sample", *RULES, "extracted", "truncated", "reason", "answer", "response", "question", "groups")
_SHOWN = 5  # ids in messages


@dataclass(frozen=True)
class Evaluation:
    """What `mmeureka eval` wrote about a benchmark.

    Attributes:
        rows: those of NAME.jsonl, by id.
    """

    folder: Path
    name: str
    results: Mapping[str, Any]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    def shares(self, judge: str) -> dict[str, float]:
        """The share of right answers to each problem."""
        return {name: float(np.mean([row[judge] for row in own])) for name, own in self.rows.items()}


def compare(first: Path, second: Path, output: Path) -> list[Compared]:
    """Writes the page of two folders of evaluations, and returns what is in it.

    Raises:
        UserError: a folder without results, no benchmark in common, or answers to different problems.
    """
    results = [_results(folder) for folder in (first, second)]
    common = [name for name in results[0] if name in results[1]]
    if not common:
        names = [", ".join(own) or "nothing" for own in results]
        raise UserError(
            f"{first} and {second} have no benchmark in common: {names[0]} in the first, {names[1]} in the second"
        )
    pictures = [_pictures(folder) for folder in (first, second)]
    compared = []
    for name in common:
        sides = [_read(folder, name, own[name]) for folder, own in zip((first, second), results, strict=True)]
        _refuse_others(*sides)
        compared.append(_compared(sides, pictures))
    alone = [[name for name in own if name not in common] for own in results]
    write_comparison_page(compared, (str(first), str(second)), alone, output)
    return compared


# ---------------------------------------------------------------------------------------------------------------------
# Reading.


def _results(folder: Path) -> Mapping[str, Any]:
    file = folder / RESULTS_FILE
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a folder that `mmeureka eval --benchmark` or `eval judge` wrote")
    benchmarks = read_json(file).get("benchmarks")
    if not isinstance(benchmarks, dict):
        raise UserError(f"{file}: no results of benchmarks in it; evaluations of problem sets are not compared")
    return benchmarks


def _read(folder: Path, name: str, results: Mapping[str, Any]) -> Evaluation:
    file = folder / f"{name}.jsonl"
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    keys = (*_KEYS, MODEL) if MODEL in results else _KEYS
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{file}:{number}: not valid JSON ({error})") from None
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise UserError(f"{file}:{number}: it has no {', '.join(missing)}; judge the answers again")
        rows[row["id"]].append(row)
    if not rows:
        raise UserError(f"{file}: no answers in it")
    return Evaluation(folder, name, results, dict(rows))


def _refuse_others(first: Evaluation, second: Evaluation) -> None:
    """Refuses answers to different problems."""
    differing = []
    for one, other in ((first, second), (second, first)):
        only = [name for name in one.rows if name not in other.rows]
        if only:
            differing.append(f"{len(only):,} only in {one.folder} ({_listed(only)})")
    if differing:
        raise UserError(f"{first.name}: the answers are to different rows: {'; '.join(differing)}")
    for key in ("question", "answer"):
        others = [name for name, own in first.rows.items() if own[0][key] != second.rows[name][0][key]]
        if others:
            raise UserError(
                f"{first.name}: the rows of {first.folder} and {second.folder} have the same ids but not the same "
                f"{key}: {_listed(others)}"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _pictures(folder: Path) -> Mapping[tuple[str, str], Sequence[str | None]]:
    """The pictures of the folder's page; none where it has no page of this version."""
    try:
        return pictures_of((folder / PAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# ---------------------------------------------------------------------------------------------------------------------
# Comparing.


def _compared(sides: Sequence[Evaluation], pictures: Sequence[Mapping[Any, Sequence[str | None]]]) -> Compared:
    first, second = sides
    rows = {name: own[0] for name, own in first.rows.items()}
    judges = _judges(first, second)
    shares = {judge: [side.shares(judge) for side in sides] for judge in judges}
    overall = [name for name, row in rows.items() if row.get("overall", True)]
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, row in rows.items():
        for group, values in row["groups"].items():
            for value in values:
                groups[group][value].append(name)
    changes = {name: tuple(int(np.sign(shares[j][1][name] - shares[j][0][name])) for j in judges) for name in rows}
    problems = [
        Problem(name, row["question"], row["answer"], row["groups"], _shown(pictures, first.name, name), changes[name])
        for name, row in rows.items()
    ]
    return Compared(
        name=first.name,
        title=str(first.results.get("settings", {}).get("release") or first.name),
        results=(first.results, second.results),
        overall=_differences(shares, overall),
        breakdowns={
            group: {value: _differences(shares, own) for value, own in sorted(values.items())}
            for group, values in sorted(groups.items())
        },
        problems=problems,
        answers=tuple([_by(judges, row) for name in rows for row in side.rows[name]] for side in sides),
    )


def _judges(first: Evaluation, second: Evaluation) -> tuple[str, ...]:
    """The rules, and a judge model if the same one judged both."""
    settings = [side.results.get("settings", {}).get("judges", {}).get(MODEL) for side in (first, second)]
    same = settings[0] == settings[1] and all(MODEL in side.results for side in (first, second))
    return (*RULES, MODEL) if same else RULES


def _by(judges: Iterable[str], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the verdict of another judge model."""
    return {key: value for key, value in row.items() if key != MODEL or MODEL in judges}


def _differences(shares: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str]) -> dict[str, Difference]:
    """By judge, over these problems."""
    return {
        judge: _difference(*(np.asarray([own[name] for name in names]) for own in both))
        for judge, both in shares.items()
    }


def _difference(first: np.ndarray, second: np.ndarray) -> Difference:
    if not len(first):
        return Difference(0, 0.0, 0.0, (0.0, 0.0))
    return Difference(len(first), float(first.mean()), float(second.mean()), paired_bootstrap(first, second))


def _shown(pictures: Iterable[Mapping[Any, Sequence[str | None]]], benchmark: str, name: str) -> Sequence[str | None]:
    """The problem's pictures of the first page that has them all, else what the first one says of them."""
    found = [own[benchmark, name] for own in pictures if (benchmark, name) in own]
    return next((own for own in found if LEFT_OUT not in own), found[0] if found else ())
