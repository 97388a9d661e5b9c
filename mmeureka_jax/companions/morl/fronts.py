"""What a set of returns of two objectives is worth: hypervolume, sparsity, utility. Larger returns are better.

As in PRMORL's code (qianlin04/PRMORL @a742815) and PEDA's (baitingzbt/PEDA @f3f804e): the reference point is 0.
"""

from __future__ import annotations

import numpy as np


def undominated(points: np.ndarray) -> np.ndarray:
    """The different points [M, 2] of [N, 2] that no other is better than, by the first objective, rising."""
    kept: list[np.ndarray] = []
    highest = -np.inf
    for point in points[np.lexsort((-points[:, 1], -points[:, 0]))]:  # the first objective falls
        if point[1] > highest:
            kept.append(point)
            highest = point[1]
    return np.array(kept[::-1]).reshape(-1, 2)


def hypervolume(points: np.ndarray, reference: float = 0.0) -> float:
    """The area that lies above (reference, reference) and below a point of [N, 2]; 0 without points above it."""
    front = undominated(points[(points > reference).all(axis=1)])
    widths = np.diff(front[:, 0], prepend=reference)
    return float((widths * (front[:, 1] - reference)).sum())


def sparsity(points: np.ndarray) -> float:
    """The squared gaps between neighbours among the undominated points of [N, 2], summed over both objectives, divided
    by their number less 1; 0 if there is one point."""
    front = undominated(points)
    if len(front) <= 1:
        return 0.0
    return float((np.diff(np.sort(front, axis=0), axis=0) ** 2).sum() / (len(front) - 1))


def share(points: np.ndarray, front: np.ndarray) -> float:
    """The share of a front's points [M, 2] that are among the points [N, 2], to 0.001."""
    return float((np.abs(front[:, None] - points) < 1e-3).all(axis=2).any(axis=1).mean())


def utility(preferences: np.ndarray, returns: np.ndarray) -> float:
    """The mean of ω·return over preferences [P, n] with returns [P, n]."""
    return float((preferences * returns).sum(axis=1).mean())
