"""OlympiadBench's English mathematics problems with pictures from competitions: 150 rows, OE_MM_maths_en_COMP."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmeureka_jax.data.row_pictures import find_pictures, is_absent
from mmeureka_jax.evaluation.benchmark import Benchmark, Row

_TAG = re.compile(r"<(?:image|img)_(\d+)>")


class OlympiadBench(Benchmark):
    name = "olympiadbench"
    root = ".."  # in the authors' archive the rows are in data, the pictures in images

    def name_of(self, row: Row) -> str:
        return str(row["id"])

    def question(self, row: Row) -> str:
        """The question alone, as MM-EUREKA asks it, with `<image>` at each picture's first place."""
        numbers = self._named(row)
        seen: set[str] = set()

        def place(tag: re.Match[str]) -> str:
            if tag[1] in seen:
                return f"image {numbers.index(tag[1]) + 1}"
            seen.add(tag[1])
            return "<image>"

        return _TAG.sub(place, _text(row))

    def answer(self, row: Row) -> str:
        """All gold answers, with the unit."""
        answer = ", ".join(text.strip().strip("$") if text.count("$") == 2 else text for text in row["final_answer"])
        return answer if is_absent(row["unit"]) else f"{answer} {row['unit']}"

    def pictures(self, row: Row) -> Sequence[Any]:
        """The columns image_1 to image_9, in the order of the text, or the files that the text names."""
        numbers = self._named(row)
        given = find_pictures(row, used=set(self.settings.release.columns)).values
        if not given and "<image_" in _text(row):
            raise ValueError(f"its text names {len(numbers)} pictures, but the row has none")
        if not given:
            return [f"../images/img_{number}.jpg" for number in numbers]
        by_number = {number: row.get(f"image_{number}") for number in numbers}
        if len(given) != len(numbers) or any(map(is_absent, by_number.values())):
            return given
        return list(by_number.values())

    def groups(self, row: Row) -> Mapping[str, Sequence[str]]:
        several = "several answers" if row["is_multiple_answer"] else "one answer"
        return {"subfield": [row["subfield"]], "answer type": [row["answer_type"]], "answers": [several]}

    def _named(self, row: Row) -> list[str]:
        """The numbers of the pictures, in the order in which the text names them first."""
        return list(dict.fromkeys(_TAG.findall(_text(row))))


def _text(row: Row) -> str:
    return row["question"] if is_absent(row["context"]) else f"{row['context']}\n{row['question']}"
