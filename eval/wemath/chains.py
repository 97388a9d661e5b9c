"""We-Math's figures: how knowledge and reasoning go together in its chains, and accuracies by steps and domains.

A chain is a problem of two or three steps and one problem for each of its steps.

With several samples of each problem, a rate is its mean over all ways to take one sample of each problem of a chain:
the steps of a chain are separate problems, so which of their samples belong together is arbitrary. For shares of right
answers p of the steps and q of the whole, CM (strict) is the product of all p and q, IK is (1 - product of p)(1 - q),
and so on. With one sample these are the authors' counts.

Source: github.com/We-Math/We-Math (commit a57a0e8), evaluation/four_dimensional_metrics.py and accuracy.py, and the
paper, arXiv 2407.01284.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

MULTI = "multi"  # the step of the problem that takes all steps


@dataclass(frozen=True)
class Chain:
    """The shares of right answers to the problems of a chain.

    Attributes:
        steps: to the problems of one step.
        whole: to the problem that takes all of them.
    """

    steps: tuple[float, ...]
    whole: float


def figures(rows: Sequence[Mapping[str, Any]], right: Sequence[float]) -> dict[str, float]:
    """The four rates, both scores, S1 to S3 and the domains; those of which there are rows."""
    singles: list[float] = []
    wholes: dict[str, list[float]] = {"2": [], "3": []}
    concepts: dict[str, list[float]] = defaultdict(list)
    chains: dict[str, dict[str, float]] = defaultdict(dict)
    for row, share in zip(rows, right, strict=True):
        step = step_of(row)
        chains[row["ID"]][step] = share
        if step == MULTI:
            wholes[row["key"][0]].append(share)
        else:
            singles.append(share)
            concepts[row["knowledge concept"]].append(share)
    accuracies = {"S1": singles, "S2": wholes["2"], "S3": wholes["3"]}
    return {
        **rates([chain for name, own in chains.items() if (chain := _chain(name, own)) is not None]),
        **{name: float(np.mean(shares)) for name, shares in accuracies.items() if shares},
        **_domain_scores(concepts),
    }


def step_of(row: Mapping[str, Any]) -> str:
    """`1`, `2`, `3` or `multi`."""
    return row["key"].rpartition("_")[2]


def rates(chains: Sequence[Chain]) -> dict[str, float]:
    """IK, IG, CM and RM as shares of the chains, the RM rates and the scores; nothing without a chain.

    IK (insufficient knowledge): a step and the whole are wrong. IG (inadequate generalisation): all steps are right,
    the whole is wrong. CM (complete mastery): the whole is right, and (strict) all steps, (loose) at least one. RM
    (rote memorisation): the whole is right, and (strict) a step is wrong, (loose) all are. An RM rate is
    RM / (CM + RM), and 0 where no whole problem is right; a score is CM + IG / 2.
    """
    if not chains:
        return {}
    all_right = np.array([math.prod(chain.steps) for chain in chains])
    all_wrong = np.array([math.prod(1.0 - share for share in chain.steps) for chain in chains])
    whole = np.array([chain.whole for chain in chains])
    generalised_too_little = float(np.mean(all_right * (1.0 - whole)))
    found = {"IK": float(np.mean((1.0 - all_right) * (1.0 - whole))), "IG": generalised_too_little}
    for name, memorised in (("strict", 1.0 - all_right), ("loose", all_wrong)):
        mastered = float(np.mean((1.0 - memorised) * whole))
        by_rote = float(np.mean(memorised * whole))
        answered = mastered + by_rote
        found |= {
            f"CM ({name})": mastered,
            f"RM ({name})": by_rote,
            f"RM rate ({name})": by_rote / answered if answered else 0.0,
            f"score ({name})": mastered + 0.5 * generalised_too_little,
        }
    return found


def _chain(name: str, shares: Mapping[str, float]) -> Chain | None:
    """The chain `2steps_17`; None where a part of the release holds not all of it."""
    steps = [str(number + 1) for number in range(int(name[0]))]
    if not {*steps, MULTI} <= shares.keys():
        return None
    return Chain(tuple(shares[step] for step in steps), shares[MULTI])


@cache
def domains() -> dict[str, list[str]]:
    """The knowledge concepts of each domain."""
    return yaml.safe_load(Path(__file__).with_name("domains.yaml").read_text(encoding="utf-8"))


def _domain_scores(concepts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """For each domain the mean over its concepts of their accuracies."""
    scores = {}
    for domain, names in domains().items():
        means = [np.mean(concepts[name]) for name in names if name in concepts]
        if means:
            scores[domain] = float(np.mean(means))
    return scores
