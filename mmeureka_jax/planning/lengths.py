"""How long responses are taken to be: log-normal, as in practice, and cut off at a limit.

`benchmarks.stragglers` measures the sampler with the same distribution: sigma 1, and a limit of 8 times the median.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

SIGMA = 1.0
USUAL_SHARE = 1 / 8  # median of the limit


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens.

    Attributes:
        limit: of the longest response.
        median: of a response, before it is cut off.
    """

    limit: int
    median: float

    @classmethod
    @functools.lru_cache(maxsize=64)
    def with_mean(cls, limit: int, mean: float | None) -> Lengths:
        """The distribution of this mean, cut off at `limit`; None: of the usual median.

        Raises:
            ValueError: no mean between 1 and the limit.
        """
        if mean is None:
            return cls(limit, max(limit * USUAL_SHARE, 1.0))
        if not 1 <= mean <= limit:
            raise ValueError(f"a mean response of {mean} tokens is not between 1 and the limit {limit}")
        low = 1e-3
        high = 1e6 * limit
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if cls(limit, middle).mean < mean else (low, middle)
        return cls(limit, high)

    @functools.cached_property
    def running(self) -> np.ndarray:
        """[limit], the share of responses that have more than t tokens, for t = 0, 1, ...; each has one at least."""
        after = np.arange(self.limit)
        far = [math.erf(math.log(t / self.median) / (SIGMA * math.sqrt(2))) if t else -1.0 for t in after]
        return 0.5 - 0.5 * np.array(far)

    @functools.cached_property
    def mean(self) -> float:
        return float(self.running.sum())

    @functools.lru_cache(maxsize=64)  # noqa: B019  (small, and few)
    def longest(self, count: int) -> float:
        """The expected length of the longest of `count` responses."""
        return float((1 - (1 - self.running) ** count).sum())

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def typical(self, count: float) -> tuple[float, ...]:
        """Lengths of `count` responses that have the distribution's mean and are as uneven as it is: its quantiles. A
        last one for a fraction."""
        whole = int(count)
        quantiles = [float(np.sum(self.running > 1 - (place + 0.5) / whole)) for place in range(whole)]
        factor = whole * self.mean / sum(quantiles) if quantiles else 1.0
        rest = [(count - whole) * self.mean] if count > whole else []
        return (*(length * factor for length in quantiles), *rest)

    def draw(self, shape: tuple[int, ...], seed: int) -> np.ndarray:
        """Lengths drawn at random, int64."""
        drawn = np.random.default_rng(seed).lognormal(math.log(self.median), SIGMA, shape)
        return np.clip(np.ceil(drawn), 1, self.limit).astype(np.int64)
