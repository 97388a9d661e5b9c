"""MathVista's testmini: 1,000 questions on figures, with options or a number (two: a list) as the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmeureka_jax.eval.mathvista.official import options_of, precision_of
from mmeureka_jax.evaluation.benchmark import Benchmark, Row
from mmeureka_jax.evaluation.cells import gold_option, nested

_OPTION_HINT = "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
_VALUE_HINT = "Please answer the question requiring {kind} and provide the final {what}, e.g., {examples}, at the end."
_VALUES = {
    ("integer", None): ("an integer answer", "value", "1, 2, 3"),
    ("float", 1): ("a floating-point number with one decimal place", "value", "1.2, 1.3, 1.4"),
    ("float", 2): ("a floating-point number with two decimal places", "value", "1.23, 1.34, 1.45"),
    ("list", None): ("a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"),
}
_OF_THE_ROW = ("question_type", "answer_type")
_OF_THE_METADATA = ("language", "source", "category", "task", "context", "grade")


class MathVista(Benchmark):
    name = "mathvista"

    def name_of(self, row: Row) -> str:
        return str(row["pid"])

    def question(self, row: Row) -> str:
        return row.get("query") or query(row)

    def answer(self, row: Row) -> str:
        if row["question_type"] != "multi_choice":
            return row["answer"]
        index = options_of(row).index(row["answer"])
        return gold_option(chr(ord("A") + index), row["answer"])

    def groups(self, row: Row) -> Mapping[str, Sequence[str]]:
        metadata = nested(row["metadata"])
        groups = {name: [row[name]] for name in _OF_THE_ROW} | {name: [metadata[name]] for name in _OF_THE_METADATA}
        return groups | {"skills": list(metadata["skills"])}


def query(row: Row) -> str:
    """What is asked, as the authors word it in `query`, which the Parquet files have and testmini.json has not.

    Source: `create_one_query`, github.com/lupantech/MathVista, evaluation/build_query.py, and its data/query.json.
    """
    options = options_of(row)
    if row["question_type"] == "multi_choice":
        hint = _OPTION_HINT
    else:
        kind, what, examples = _VALUES[row["answer_type"], precision_of(row)]
        hint = _VALUE_HINT.format(kind=kind, what=what, examples=examples)
    unit = f" (Unit: {row['unit']})" if row["unit"] else ""
    lines = [f"Hint: {hint}", f"Question: {row['question']}{unit}"]
    if options:
        lines += ["Choices:", *(f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options))]
    return "\n".join(lines).strip()
