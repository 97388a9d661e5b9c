"""We-Math's testmini: 1,740 questions with options, in 525 chains of a problem and its steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmeureka_jax.eval.wemath import chains
from mmeureka_jax.eval.wemath.options import gold_answer, options_of
from mmeureka_jax.evaluation.benchmark import Benchmark, Row

_STEPS = {"2": "two-step", "3": "three-step"}
# The answer in the brackets that the template shows: `<Answer>: <<B>>`.
_BRACKETS = re.compile(r"(Answer>?\s*[:：]\s*)<{1,2}([^<>]*)>{0,2}")
# The template of the authors' prompt, in which their rule finds the answer.
_TEMPLATE = (
    "Regarding the format, please answer following the template below, and be sure to include two <> symbols:\n"
    "<Thought process>: <<your thought process>> <Answer>: <<your option>>"
)
_HINT = (
    "Now, we require you to solve a multiple-choice math question. Please briefly describe your thought process and "
    "provide the final answer(option)."
)


class WeMath(Benchmark):
    name = "wemath"

    def name_of(self, row: Row) -> str:
        return f"{row['ID']}/{row['key']}"

    def question(self, row: Row) -> str:
        options = "".join(f"{letter}. {text}\n" for letter, text in options_of(row).items())
        return f"Hint: {_HINT}\nQuestion: {row['question']}\nOptions:\n{options}\n{_TEMPLATE}"

    def answer(self, row: Row) -> str:
        return gold_answer(row["answer"].strip(), options_of(row))

    def readable(self, response: str) -> str:
        return _BRACKETS.sub(r"\1\2", response)

    def groups(self, row: Row) -> Mapping[str, Sequence[str]]:
        if chains.step_of(row) == chains.MULTI:
            return {"steps": [_STEPS[row["key"][0]]]}
        return {"steps": ["one-step"], "knowledge concept": [row["knowledge concept"]]}

    def figures(self, rows: Sequence[Row], right: Sequence[float]) -> Mapping[str, float]:
        return chains.figures(rows, right)
