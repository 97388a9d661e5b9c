"""The blocks of a solution in steps: `<step>…</step>` and `<answer>…</answer>`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_OPENING = re.compile("<(step|answer)>")


@dataclass(frozen=True)
class Block:
    """What is between two tags.

    Attributes:
        end: where its closing tag ends; None for a block without one, which is the rest of the text.
    """

    kind: Literal["step", "answer"]
    text: str
    end: int | None

    @property
    def ends(self) -> bool:
        return self.end is not None


def blocks(response: str) -> Iterator[Block]:
    """The blocks in their order. Tags within a block are part of its text. Linear in the length of the response."""
    position = 0
    while opening := _OPENING.search(response, position):
        kind: Literal["step", "answer"] = "step" if opening[1] == "step" else "answer"
        close = response.find(f"</{kind}>", opening.end())
        if close < 0:
            yield Block(kind, response[opening.end() :], None)
            return
        position = close + len(f"</{kind}>")
        yield Block(kind, response[opening.end() : close], position)


def final_answer(response: str) -> str | None:
    """The text of the first answer block; None where there is none that ends, or where a step comes after it."""
    answer: str | None = None
    for block in blocks(response):
        if block.kind == "step" and answer is not None:
            return None
        if block.kind == "answer" and answer is None:
            if not block.ends:
                return None
            answer = block.text
    return answer
