"""pass@k of groups of answers."""

from __future__ import annotations

import math

import numpy as np


def pass_at_k(right: np.ndarray) -> dict[int, np.ndarray]:
    """k -> for each group [P, n] the chance that k of its n answers, drawn at random, hold a right one.

    For k = 1, 2, 4, ... and n. 1 - C(n - c, k) / C(n, k) with c right ones: an unbiased estimate of pass@k.

    Source: Chen et al. (arXiv 2107.03374), equation 1.
    """
    n = right.shape[1]
    wrong = (~right).sum(axis=1)
    sizes = [2**power for power in range(n.bit_length()) if 2**power < n] + [n]
    return {k: np.asarray([1 - math.comb(int(count), k) / math.comb(n, k) for count in wrong]) for k in sizes}
