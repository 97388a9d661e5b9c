"""How sure a score is, and what several answers to a problem say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmeureka_jax.evaluation.pass_at_k import pass_at_k

RESAMPLES = 2000
LEVEL = 0.95
_NUMBERS_AT_ONCE = 2**22


def bootstrap(shares: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean of `shares` [P], which are drawn again with replacement.

    Problems are drawn, not answers: answers to one problem are alike. Source: Efron and Tibshirani, An Introduction to
    the Bootstrap (1993), chapter 13.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, _NUMBERS_AT_ONCE // max(len(shares), 1))
    means = [
        shares[generator.integers(len(shares), size=(min(at_once, RESAMPLES - start), len(shares)))].mean(axis=1)
        for start in range(0, RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_bootstrap(first: np.ndarray, second: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean difference second - first of two models on the same problems [P]."""
    return bootstrap(second - first, seed)


def majority(rows: Sequence[Mapping[str, Any]], judge: str) -> float:
    """Whether the commonest extracted answer to a problem is right; among equally common ones the first counts.

    Args:
        rows: the judged answers to one problem, as `judging.judge` makes them.
    """
    counted = Counter(row["extracted"] for row in rows if row["extracted"] is not None)
    if not counted:
        return 0.0
    commonest = counted.most_common(1)[0][0]
    return float(next(row[judge] for row in rows if row["extracted"] == commonest))


def of_samples(problems: Sequence[Sequence[Mapping[str, Any]]], judge: str) -> dict[str, Any]:
    """avg@n, pass@k and the vote of the majority, for problems [P] with n judged answers each."""
    right = np.asarray([[row[judge] for row in rows] for rows in problems], bool)
    return {
        f"avg@{right.shape[1]}": float(right.mean()),
        "pass_at_k": {str(k): float(rates.mean()) for k, rates in pass_at_k(right).items()},
        "majority": float(np.mean([majority(rows, judge) for rows in problems])),
    }
