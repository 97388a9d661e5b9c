"""The choice among answers, counted plainly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import fmean


def recounted(scores: Sequence[Sequence[float]], right: Sequence[Sequence[float]], k: int) -> float:
    """How often the highest of k answers is right, over all choices of k; of equal ones the first counts."""
    return fmean(
        verdicts[max(chosen, key=lambda sample, own=own: (own[sample], -sample))]
        for own, verdicts in zip(scores, right, strict=True)
        for chosen in itertools.combinations(range(len(own)), k)
    )
