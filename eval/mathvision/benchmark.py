"""MATH-Vision's test: 3,040 problems of competitions, of 16 subjects and five levels, half of them with options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmeureka_jax.evaluation.benchmark import Benchmark, Row

LETTERS = "ABCDE"

_TAG = re.compile(r"<image(\d+)>")
# What three gold answers of the release have: a form feed for \f, units without a command.
_BROKEN_FRACTION = "\x0crac"
# Names of one letter, of which a rule cannot tell whether they are options: `between bowls Q and R`.
_NAME = re.compile(r"(?<![A-Za-z\\])(?:[A-Z]|[IV]+)(?![a-zA-Z])")
_UNIT = re.compile(r"\{(degrees|inches|square\s?inches)\}")


class MathVision(Benchmark):
    name = "mathvision"

    def name_of(self, row: Row) -> str:
        return str(row["id"])

    def question(self, row: Row) -> str:
        """The question and its options, as MM-EUREKA and MATH-V ask it.

        A row has one picture, also where its text names several, which that picture shows: `image 2` is the second.
        """
        options = list(row["options"])
        lines = [f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False)]
        text = "\n".join([row["question"], *(lines if "".join(options) != LETTERS else [])])
        return text if len(_TAG.findall(text)) == 1 else _TAG.sub(r"image \1", text)

    def answer(self, row: Row) -> str:
        """The letter, with its option where that says more; or the value."""
        answer = str(row["answer"]).replace(_BROKEN_FRACTION, r"\frac").strip()
        options = row["options"]
        if not len(options) or "".join(options) == LETTERS:
            return _UNIT.sub(lambda unit: rf" \text{{ {unit[1].replace('squareinches', 'square inches')}}}", answer)
        option = options[LETTERS.index(answer)]
        return answer if _NAME.search(option) or _TAG.search(option) else f"({answer}) {option}".strip()

    def groups(self, row: Row) -> Mapping[str, Sequence[str]]:
        subject = row["subject"]
        level = str(row["level"])
        return {"subject": [subject], "level": [level], "subject and level": [f"{subject}, level {level}"]}
