"""MathVerse's testmini: 788 problems on geometry and functions in five versions, which say more and more in the picture
and less and less in the text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mmeureka_jax.evaluation.benchmark import Benchmark, Row
from mmeureka_jax.evaluation.cells import gold_option, nested

TEXT_ONLY = "Text Only"  # a split of its own, apart from the overall score

_OPTIONS = re.compile(r"\nChoices?:\s*\n")
_OPTION = re.compile(r"^([A-H])\s*[:.](.*?)(?=^[A-H]\s*[:.]|\Z)", re.MULTILINE | re.DOTALL)
_LETTER = re.compile(r"\(?([A-H])\)?")
# Slips in golds, which the accuracy rule would read as something else or not at all.
_SLIPS = {
    "掳": "°",  # a degree sign in the wrong encoding
    r"216.\mathrm": r"216 \mathrm",
    r"{8}{5} \pi": r"\frac{8}{5} \pi",
}


class MathVerse(Benchmark):
    name = "mathverse"

    def name_of(self, row: Row) -> str:
        return str(row["sample_index"])

    def question(self, row: Row) -> str:
        """`query_cot`, which the papers ask; where the question is in the picture (Vision Only) it says so."""
        return row["query_cot"]

    def answer(self, row: Row) -> str:
        gold = row["answer"].strip()
        if row["question_type"] == "multi-choice":
            return _gold_option(gold, options_of(row.get("question_for_eval") or row["question"]))
        for slip, correct in _SLIPS.items():
            gold = gold.replace(slip, correct)
        return gold

    def needs_picture(self, row: Row) -> bool:
        return row["problem_version"] != TEXT_ONLY

    def groups(self, row: Row) -> Mapping[str, Sequence[str]]:
        """Text Only counts for its version alone. A subfield's name holds its subject, since subjects share names."""
        version = {"version": [row["problem_version"]]}
        if not self.counts_overall(row):
            return version
        metadata = nested(row["metadata"])
        subject = metadata["subject"]
        return version | {"subject": [subject], "subfield": [f"{subject}: {metadata['subfield']}"]}

    def counts_overall(self, row: Row) -> bool:
        return row["problem_version"] != TEXT_ONLY

    def figures(self, rows: Sequence[Row], right: Sequence[float]) -> Mapping[str, float]:
        """`mean_of_versions`, the authors' overall score; of a whole release it equals the mean over problems."""
        shares: dict[str, list[float]] = defaultdict(list)
        for row, share in zip(rows, right, strict=True):
            if self.counts_overall(row):
                shares[row["problem_version"]].append(share)
        means = [sum(own) / len(own) for own in shares.values()]
        return {"mean_of_versions": sum(means) / len(means)} if means else {}


def options_of(question: str) -> dict[str, str]:
    """The options after `Choices:` in a question, by letter; none where the picture holds them."""
    start = _OPTIONS.search(question)
    return {letter: text.strip() for letter, text in _OPTION.findall(question, start.end())} if start else {}


def _gold_option(gold: str, options: Mapping[str, str]) -> str:
    """The gold of a question with options: a letter (`(C)` in some rows), two on two lines, or an option's text."""
    if (letter := _LETTER.fullmatch(gold)) is not None:
        return gold_option(letter[1], options.get(letter[1], ""))
    if all(_LETTER.fullmatch(line) for line in gold.split("\n")):
        return ", ".join(gold.split("\n"))
    of_text = [letter for letter, text in options.items() if text == gold]
    return gold_option(of_text[0], gold) if of_text else gold
