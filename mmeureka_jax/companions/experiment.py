"""An experiment of a companion: kinds of run by name, each with several seeds, and a comparison of them.

    RUN/config.yaml                  what was asked for
        KIND/seedN/metrics.jsonl     a row for each measured step
        KIND/seedN/done.json         the settings and the time that it took, written last
        comparison.html, ...         see report/comparison.py; and the pictures of the companion

All seeds of a kind are computed together. What is done is not done again: an interrupted experiment continues with the
same command.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

from mmeureka_jax.config.limits import NOT_NEGATIVE, broken_limits, out_of_range
from mmeureka_jax.config.reading import Sections, config_diff, load_tree, overlaid, to_dict
from mmeureka_jax.config.yaml_text import dump_yaml
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import exclusive, read_json, read_text, write_atomic
from mmeureka_jax.report import comparison

METRICS_FILE = "metrics.jsonl"
DONE_FILE = "done.json"
CONFIG_FILE = "config.yaml"

Rows = list[dict[str, Any]]  # of one run: `step`, and what was measured there, numbers or lists of them
Advance = Callable[[int], object]  # told how many units of work have been done since the last call


@dataclass(frozen=True)
class Experiment:
    """What the configs of all companions have. A kind of run has every other key as well."""

    run_dir: str = "runs/companions"  # where results are written
    seeds: Annotated[tuple[int, ...], NOT_NEGATIVE] = (0,)  # each kind of run is repeated with these
    # kinds of run by names, as {slow: {learning_rate: 1e-4}}, each with what sets it apart; none: one kind of run
    variants: Sections = field(default_factory=lambda: Sections({}), hash=False)


C = TypeVar("C", bound=Experiment)


class Bar(Protocol):
    """A progress bar, as those of tqdm."""

    def update(self, n: int = 1) -> object: ...
    def set_postfix_str(self, s: str) -> object: ...


@dataclass(frozen=True)
class Companion(Generic[C]):
    """One of the companions, as an experiment needs to know it.

    Attributes:
        config: the class of its config.
        problems: what else is wrong with a kind's config than types and limits, a sentence that begins with the key.
        length: units of work of a kind of run.
        compute: the rows of each of these seeds. Reports all units of work.
        metrics: those that are drawn over steps.
        summary: columns of the tables, such as "last return".
        pictures: more pictures, SVG by the name of their file, from the rows of each kind's runs.
    """

    name: str
    config: type[C]
    problems: Callable[[C], Sequence[str]]
    length: Callable[[C], int]
    compute: Callable[[C, Sequence[int], Advance], Sequence[Rows]]
    metrics: Sequence[str]
    summary: Sequence[str]
    pictures: Callable[[Mapping[str, Sequence[Rows]]], Mapping[str, bytes]] = lambda rows: {}


def load_experiment(companion: Companion[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """The config of an experiment, whole and checked.

    Raises:
        UserError: a file that cannot be read, an unknown key, a value that cannot be, also of one kind of run.
    """
    config = load_tree(companion.config, path, overrides)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds must be different integers, such as [0, 1, 2]; got {list(config.seeds)}")
    for name, kind in kinds_of(config).items():
        problems = [*out_of_range(kind), *(broken_limits(kind) or companion.problems(kind))]
        if problems:
            of = f"variants: {name}: " if config.variants else ""
            raise UserError("\n".join(f"{of}{problem}" for problem in problems))
    return config


def kinds_of(config: C) -> dict[str, C]:
    """The config of each kind of run by its name, without variants of its own.

    Raises:
        UserError: a name that is no name of a folder, or settings that are not of this config.
    """
    base = dataclasses.replace(config, variants=Sections({}))
    if not config.variants:
        return {"run": base}
    for name, settings in config.variants.items():
        if not str(name).strip(".") or not set(str(name)) <= _NAME:
            raise UserError(f"variants: {name!r}: a name may have letters, digits and any of {_MARKS}")
        for key in settings:
            if key in ("run_dir", "seeds", "variants"):
                raise UserError(f"variants: {name}: {key} cannot be set for one kind of run")
    return {str(name): overlaid(base, settings, f"variants: {name}") for name, settings in config.variants.items()}


def run_experiment(companion: Companion[C], config: C, bar: Callable[[int], Bar]) -> dict[str, dict[str, list[float]]]:
    """Computes what is not done yet, and writes the comparison.

    Args:
        bar: makes the bar for so many units of work.

    Returns:
        For each kind of run the columns of the tables, each with a number for each seed.

    Raises:
        UserError: results of other settings are in the folder, or it cannot be written.
    """
    folder = Path(config.run_dir)
    kinds = kinds_of(config)
    with exclusive(folder):
        missing = {
            name: [s for s in config.seeds if not _is_done(folder, name, kind, s)] for name, kind in kinds.items()
        }
        write_atomic(folder / CONFIG_FILE, dump_yaml(to_dict(config)).encode())
        shown = bar(sum(companion.length(kinds[name]) for name, seeds in missing.items() if seeds))
        for name, seeds in missing.items():
            if seeds:
                shown.set_postfix_str(name)
                start = time.perf_counter()
                rows = companion.compute(kinds[name], seeds, shown.update)
                seconds = time.perf_counter() - start
                for seed, of_seed in zip(seeds, rows, strict=True):
                    _write_run(_folder_of(folder, name, seed), kinds[name], of_seed, seconds)
        found = {name: [read_rows(_folder_of(folder, name, seed)) for seed in config.seeds] for name in kinds}
        runs = [
            comparison.Run(name, f"seed {seed}", rows, "done", config.variants.get(name, {}))
            for name, of_kind in found.items()
            for seed, rows in zip(config.seeds, of_kind, strict=True)
        ]
        pictures = companion.pictures(found)
        for file, picture in pictures.items():
            write_atomic(folder / file, picture)
        comparison.write_comparison(
            runs, folder, title=companion.name, metrics=companion.metrics, summary=companion.summary,
            pictures=tuple(pictures),
        )  # fmt: skip
    return {name: _numbers(of_kind, companion.summary) for name, of_kind in found.items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (0 of one number) and the numbers themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "seeds": list(values)}


def read_rows(run: Path) -> Rows:
    """The rows of a run that is done."""
    return [json.loads(line) for line in read_text(run / METRICS_FILE).splitlines()]


_MARKS = ". _ = + -"
_NAME = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") | set(_MARKS.split())


def _folder_of(folder: Path, kind: str, seed: int) -> Path:
    return folder / kind / f"seed{seed}"


def _settings(kind: Experiment) -> dict[str, Any]:
    """What a run depends on besides its seed, as JSON has it."""
    return {key: value for key, value in to_dict(kind).items() if key not in ("run_dir", "seeds", "variants")}


def _is_done(folder: Path, name: str, kind: Experiment, seed: int) -> bool:
    file = _folder_of(folder, name, seed) / DONE_FILE
    if not file.exists():
        return False
    changes = config_diff(read_json(file).get("settings", {}), _settings(kind))
    if changes:
        listed = "\n  ".join(changes)
        raise UserError(
            f"{file.parent} holds a run with other settings:\n  {listed}\n"
            "Give the experiment another folder (run_dir=DIR), or remove that run"
        )
    return True


def _write_run(run: Path, kind: Experiment, rows: Rows, seconds: float) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(run / METRICS_FILE, text.encode())
    done = {"settings": _settings(kind), "seconds": round(seconds, 2)}
    write_atomic(run / DONE_FILE, (json.dumps(done, indent=1) + "\n").encode())


def _numbers(runs: Sequence[Rows], summary: Sequence[str]) -> dict[str, list[float]]:
    """Each column's number of each run; columns that a run has no number for are left out."""
    columns = {entry: [comparison.reduce(rows, *comparison.parse_summary(entry)) for rows in runs] for entry in summary}
    return {
        entry: [value for value in values if value is not None]
        for entry, values in columns.items()
        if None not in values
    }
