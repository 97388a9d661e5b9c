"""The text that a process reward model reads, and the places of its markers.

    user's turn        the pictures of the problem, and nothing else
    assistant's turn   Question: {question}
                       Process: {first step}<prm>

                       {second step}<prm>

Source: MM-PRM (arXiv 2505.13427), whose published code has this text. It scores steps without the blank lines that it
trains with; here both have them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from mmeureka_jax.data.record import Problem
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.labels import BETWEEN, MARKER

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor

YES = "Yes"
NO = "No"


@dataclass(frozen=True)
class MarkerTokens:
    """The tokens of a process reward model.

    Attributes:
        marker: `<prm>`.
        yes, no: the two whose probabilities there are the score.
    """

    marker: int
    yes: int
    no: int

    @classmethod
    def of(cls, processor: Processor) -> MarkerTokens:
        """
        Raises:
            UserError: the checkpoint's tokenizer does not have them.
        """
        ids = [token_of(processor.tokenizer.backend_tokenizer, text) for text in (MARKER, YES, NO)]
        size = processor.config.text.vocab_size
        for text, token in zip((MARKER, YES, NO), ids, strict=True):
            if token is None or token >= size:
                what = f"has no token {text}" if token is None else f"has {text} as token {token} of a table of {size}"
                raise UserError(
                    f"{processor.path}: its tokenizer {what}, so it is no process reward model; give one that "
                    "`mmeureka export` wrote of a run of `mmeureka prm train`"
                )
        marker, yes, no = (token for token in ids if token is not None)
        return cls(marker, yes, no)

    @property
    def choices(self) -> Int[np.ndarray, "2"]:
        return np.asarray([self.yes, self.no], np.int32)

    def labelled(self, tokens: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
        """Which tokens come right after a marker: the state that predicts them is the marker's."""
        after = np.zeros(len(tokens), bool)
        after[1:] = tokens[:-1] == self.marker
        return after


def token_of(tokenizer: Any, text: str) -> int | None:
    """The one token that a text is to a tokenizer of the `tokenizers` library; None if it is several."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return ids[0] if len(ids) == 1 else None


def process_problem(problem: Problem, metadata: Mapping[str, Any] | None = None) -> Problem:
    """The prompt that processes of a problem follow.

    Args:
        metadata: of the result; None: the problem's.
    """
    pictures = [{"type": "image"} for _ in problem.images]
    begun = [{"type": "text", "text": f"Question: {problem.question}\nProcess:"}]
    return dataclasses.replace(
        problem,
        messages=({"role": "user", "content": pictures}, {"role": "assistant", "content": begun}),
        metadata=problem.metadata if metadata is None else metadata,
    )


def process_text(steps: Sequence[str]) -> str:
    """A process with a marker after each step."""
    return BETWEEN.join(step.strip() + MARKER for step in steps)


def process_tokens(processor: Processor, text: str) -> Int[np.ndarray, " T"]:
    """The tokens of a process with its markers, and the end token last.

    Raises:
        UserError: there is another special token in the text.
    """
    return np.append(processor.encode_marked(f" {text}", MARKER), np.int32(processor.end_token_id))


def tokens_of_steps(processor: Processor, steps: Sequence[str]) -> Int[np.ndarray, " T"]:
    """The tokens of a process of these steps; none of one without any.

    Raises:
        UserError: a step that is empty, or that has a special token in it, the marker for instance.
    """
    for number, step in enumerate(steps, start=1):
        if not step.strip():
            raise UserError(f"step {number} is empty; leave it out")
        if MARKER in step:
            raise UserError(f"step {number} contains the marker {MARKER}; remove it")
    return process_tokens(processor, process_text(steps)) if steps else np.zeros(0, np.int32)
