"""Small releases of benchmarks, in the forms that they are published in, and answers to them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from mmeureka_jax.evaluation.benchmark import Benchmark, open_benchmark
from mmeureka_jax.evaluation.judging import Answer, judge
from mmeureka_jax.evaluation.release import ReleasedRows, read_release
from mmeureka_jax.rewards.workers import RewardWorkers

Rows = Sequence[Mapping[str, Any]]


def picture(shade: int = 0) -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def known_release(name: str, rows: Rows) -> Benchmark:
    """The benchmark as if these rows were its whole release."""
    benchmark = open_benchmark(name)
    ids = hashlib.sha256("\n".join(sorted(map(benchmark.name_of, rows))).encode()).hexdigest()
    release = replace(benchmark.settings.release, rows=len(rows), ids=ids)
    benchmark.settings = replace(benchmark.settings, release=release)
    return benchmark


def released(name: str, rows: Rows, folder: Path) -> ReleasedRows:
    """These rows, read from a JSON file as the whole release."""
    return read_release(known_release(name, rows), write_json(folder / f"{name}.json", rows))


def write_suite(folder: Path) -> Path:
    """A suite of MMK12, in its own prompt style, and MATH-Vision; with the files."""
    (folder / "red.png").write_bytes(picture(200))
    rows = [
        {"id": i, "question": f"what is {i} + 1 ?", "answer": str(i % 9), "subject": "math", "image": "red.png"}
        for i in range(12)
    ]
    of_mathvision = [
        {"id": str(i), "question": f"what is {i} ? <image1>", "options": [], "answer": str(i), "image": "red.png",
         "level": 1, "subject": "algebra"}
        for i in range(7)
    ]  # fmt: skip
    (folder / "mmk12.json").write_text(json.dumps(rows))
    (folder / "mathvision.json").write_text(json.dumps(of_mathvision))
    suite = folder / "suite.yaml"
    entries = {"mmk12": {"path": "mmk12.json", "prompt_style": "instruct"}, "mathvision": {"path": "mathvision.json"}}
    suite.write_text(yaml.safe_dump({"benchmarks": entries}, sort_keys=False))
    return suite


def write_json(file: Path, rows: Rows) -> Path:
    file.write_text(json.dumps(list(rows), ensure_ascii=False))
    return file


def write_parquet(file: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
    return file


def write_tsv(file: Path, rows: Rows) -> Path:
    with file.open("w", newline="", encoding="utf-8") as lines:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(lines, columns, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return file


def verdicts(
    rows: ReleasedRows, responses: Sequence[tuple[str, str]], workers: RewardWorkers
) -> list[tuple[int, int, str | None]]:
    """What both judges say of each `(id, response)`, and the text that the official rule judged."""
    answers = [Answer(name, response) for name, response in responses]
    return [(row["official"], row["ours"], row["extracted"]) for row in judge(rows, answers, workers)]


def recounted(judged: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The scores of the problems with these ids, one answer to each, counted plainly."""
    own = [row for row in judged if row["id"] in set(names)]
    shares = {key: sum(row[key] for row in own) / len(own) for key in ("official", "ours")}
    return {**shares, "count": len(own)}
