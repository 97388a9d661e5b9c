"""K12-500: 500 problems of school mathematics without options, which MM-EUREKA published with its code."""

from __future__ import annotations

from mmeureka_jax.evaluation.benchmark import PACKAGE, Benchmark, Row


class K12(Benchmark):
    name = "k12"

    @property
    def official(self) -> str:
        return f"{PACKAGE}.mmk12.official:judge"  # MM-EUREKA's rule, as for its other benchmark

    def name_of(self, row: Row) -> str:
        return str(row["id"])

    def question(self, row: Row) -> str:
        return row["question"]

    def answer(self, row: Row) -> str:
        return row["answer"].strip()
