"""Folders as `mmeureka eval` writes them, without a model and without judges: the verdicts are made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.judging import Answer, results_of, write_results, write_rows
from mmeureka_jax.evaluation.pages import Judged, with_problems, write_page
from mmeureka_jax.evaluation.release import ReleasedRows, read_release

SUBJECTS = ("math", "physics", "chemistry", "biology")


def release(folder: Path, count: int, question: str = "What is the length of side {}?") -> ReleasedRows:
    """So many rows of MMK12, each with a picture of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        colour = (i % 256, i // 256, 90)
        Image.new("RGB", (40 + i % 20, 30), colour).save(folder / f"{i}.png")
        rows.append(
            {
                "id": f"p{i}",
                "question": question.format(i),
                "answer": "ABCD"[i % 4],
                "subject": SUBJECTS[i % 3],
                "image": f"{i}.png",
            }
        )
    (folder / "test.json").write_text(json.dumps(rows))
    return read_release(open_benchmark("mmk12"), folder, partial=True)


def renamed(released: ReleasedRows, name: str, title: str) -> ReleasedRows:
    """The same rows as those of another benchmark."""
    kind = type(released.benchmark)
    settings = dataclasses.replace(released.benchmark.settings, title=title)
    return dataclasses.replace(released, benchmark=type("Other", (kind,), {"name": name, "settings": settings})())


def judged(
    released: ReleasedRows,
    *,
    samples: int = 1,
    skill: float = 0.5,
    seed: int = 0,
    response: str = "<think>thought {0}, {1}</think><answer>answer {0}, {1}</answer>",
) -> Judged:
    """Answers that are right with probability `skill`; every tenth is cut, and some have a reason."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    answers = []
    for row in released.rows:
        for sample in range(samples):
            text = response.replace("{0}", row.id).replace("{1}", str(sample))
            official = int(generator.random() < skill)
            failed = generator.random() < 0.03
            answers.append(Answer(row.id, text, sample))
            rows.append(
                {
                    "id": row.id,
                    "sample": sample,
                    "official": 0 if failed else official,
                    "ours": 0 if failed else official ^ int(generator.random() < 0.1),
                    "extracted": None if failed else f"[{text[:20]}]",
                    "truncated": bool(generator.random() < 0.1),
                    "reason": "ours: ran out of time" if failed else None,
                }
            )
    rows = with_problems(released, rows, answers)
    return Judged(released, rows, results_of(released, rows) | {"settings": {"model": f"model {seed}", "seed": seed}})


def write_folder(folder: Path, given: Sequence[Judged]) -> Path:
    """Returns the page."""
    for one in given:
        write_rows(folder, one.released.benchmark.name, one.rows)
    write_results(folder, {one.released.benchmark.name: one.results for one in given})
    return write_page(given, folder)
