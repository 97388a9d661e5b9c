"""Who judges answers to public benchmarks."""

from __future__ import annotations

from collections.abc import Container

RULES = ("official", "ours")
MODEL = "model"  # only where a command names a judge model
JUDGES = (*RULES, MODEL)


def judges_in(found: Container[str]) -> tuple[str, ...]:
    """The judges whose verdicts a row of NAME.jsonl has, or whose scores the results of a benchmark have."""
    return tuple(judge for judge in JUDGES if judge in found)
