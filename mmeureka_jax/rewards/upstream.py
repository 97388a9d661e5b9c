"""The accuracy rules of MM-EUREKA, to repeat the run of a paper. Our own rule is in `accuracy.py`.

Each has a form here and a value of `reward.accuracy`:
  instruct (upstream): compares the text inside the `<answer>` tags, as this project defines the rule.
  tags (upstream_tags): as the public code, to the letter. It hands math-verify the tags along with the text.
  boxed (upstream_boxed): compares the last `\\boxed{}`, as the public code.
The public code is `accuracy_reward_func` in github.com/ModalMinds/MM-EUREKA, examples/scripts: for tags
reward_func_qwen_instruct.py of the branch qwen, for boxed reward_func_internvl_pretrain.py of the branch internvl.

What handing the tags along does:
  - math-verify reads a bare number only at the start of a text and after a space or `=`. With the tags,
    `<answer>5</answer>` scores 0 and `<answer> 5</answer>` scores 1; inside them, both score 1.
  - math-verify takes the first value after the word "answer", which the tag holds; without that word it takes the
    rightmost value. With the tags, `<answer> 3, 4, 5 </answer>` is 3; inside them, it is 5.

What else a reader would not guess:
  - instruct and tags parse the gold answer inside `$…$`; boxed parses it as it is, where `\\sqrt{2}` is nothing.
  - instruct and tags pass answer and gold answer to `verify` in exchanged places, which matters for equations,
    relations and sets.
  - A gold answer of which nothing can be read scores 1 for every response in instruct and tags, 0 in boxed.
  - instruct and tags know choices: where the gold answer is one of a to d, that letter must occur anywhere in the
    answer, also inside a word, and none of the other three may.

`extract` needs no SymPy and runs in the training process. `compare` may run for ever: math-verify's time limits are
signals, which fail in threads, and are off; `workers.py` kills what runs too long. Upstream, where the limit is 5 s for
each step, continues after it: a gold answer that takes longer to parse scores 1, an answer may still pass as a choice.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from mmeureka_jax.rewards.answers.boxes import brace_ends

if TYPE_CHECKING:
    from sympy import Basic, MatrixBase

    Found: TypeAlias = list[Basic | MatrixBase | str]  # what math-verify reads in a text: a value, its spelling

UpstreamForm: TypeAlias = Literal["instruct", "tags", "boxed"]
# The values of `reward.accuracy` that are upstream's rules.
FORMS: dict[str, UpstreamForm] = {"upstream": "instruct", "upstream_tags": "tags", "upstream_boxed": "boxed"}

CHOICES = frozenset("abcd")
_BRACE = re.compile(r"[{}]")  # one after a backslash counts, as upstream


def extract(response: str, form: UpstreamForm) -> str | None:
    """The part of a response that upstream's rule compares, in linear time. None: nothing to compare, which scores 0
    whatever the gold answer (an empty response, unless boxed).

    instruct: what is inside the first `<answer>…</answer>` on one line; else all that follows the last `<answer>`;
      else the whole response.
    tags: the same, with the tags of `<answer>…</answer>`.
    boxed: the last balanced `\\boxed{…}` with `\\boxed`; a box inside another is a part of that one. Else "".
    """
    response = response.strip()
    if form == "boxed":
        return _last_box(response)
    if not response:
        return None
    for line in response.split("\n"):  # the regular expression <answer>.*?</answer> finds the same in quadratic time
        _, opened, rest = line.partition("<answer>")
        inside, closed, _ = rest.partition("</answer>")
        if opened and closed:
            return opened + inside + closed if form == "tags" else inside
    return response.rpartition("<answer>")[2]


def compare(text: str | None, answer: str, form: UpstreamForm) -> float:
    """The score of what `extract` returned for this form, 0.0 or 1.0. It has no time limit of its own."""
    from math_verify import verify

    if text is None:
        return 0.0
    gold = _parse_gold(answer, form)
    if form == "boxed":
        return float(text == answer or verify(gold, _parse(text), timeout_seconds=None))
    if not gold:
        return 1.0
    return float(verify(_parse(text), gold, timeout_seconds=None) or _names_choice(text, gold))


def gold_problem(answer: str, form: UpstreamForm) -> str | None:
    """Why every response would score the same, as a phrase that follows "the gold answer"; None if there is no such
    reason. The rule itself scores such rows as upstream does; the data check refuses them."""
    if _parse_gold(answer, form):
        return None
    score = "0" if form == "boxed" else "1"
    return f"{answer!r} holds nothing that upstream's rule can read, so that every response would score {score}"


def _last_box(text: str) -> str:
    ends = brace_ends(text, _BRACE)
    box = ""
    box_end = 0
    for command in re.finditer(r"\\boxed\{", text):
        end = ends.get(command.end())
        if end is not None and command.start() >= box_end:
            box = text[command.start() : end + 1]
            box_end = end + 1
    return box


@lru_cache(maxsize=1024)
def _parse_gold(answer: str, form: UpstreamForm) -> Found:
    from math_verify import parse

    if form == "boxed":
        return _parse(answer)
    return parse(f"${answer}$", parsing_timeout=None)


def _parse(text: str) -> Found:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse

    kinds = [StringExtractionConfig(), LatexExtractionConfig(), ExprExtractionConfig()]
    return parse(text, extraction_config=kinds, parsing_timeout=None)


def _names_choice(text: str, gold: Found) -> bool:
    text = text.replace("</answer>", "").replace("<answer>", "").lower()
    letters = {letter for letter in CHOICES if letter in text}
    return any({str(value).lower()} == letters for value in gold)
