"""MMK12's test: 2,000 questions with options on mathematics, physics, chemistry and biology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmeureka_jax.evaluation.benchmark import Benchmark, Row


class MMK12(Benchmark):
    name = "mmk12"

    def name_of(self, row: Row) -> str:
        return str(row["id"])

    def question(self, row: Row) -> str:
        return row["question"]

    def answer(self, row: Row) -> str:
        return row["answer"].strip()

    def groups(self, row: Row) -> Mapping[str, Sequence[str]]:
        return {"subject": [row["subject"]]}
