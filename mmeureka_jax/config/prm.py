"""The keys of `prm`: process rewards, from the tree search that labels steps to the model that is trained on them.

As in schema.py, a comment above a key, or behind it, is its description in docs/reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from mmeureka_jax.config.limits import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True)
class SearchConfig:
    """The tree search of `mmeureka prm search`. The defaults are MM-PRM's; see docs/prm.md."""

    rollouts: Annotated[int, POSITIVE, COUNT] = 16  # rollouts drawn from each state
    # the smaller, the more rollouts of states that are usually solved come first
    alpha: Annotated[float, FRACTION] = 0.5
    beta: Annotated[float, FRACTION] = 0.9  # the smaller, the more short rollouts come first
    # words of a rollout whose priority is multiplied by prm.search.beta
    length_scale: Annotated[float, POSITIVE] = 2000.0
    # weight of states that were searched less often, the paper's c
    exploration: Annotated[float, NOT_NEGATIVE] = 0.125
    max_searches: Annotated[int, NOT_NEGATIVE] = 200  # after so many searches a tree is finished
    max_rollouts: Annotated[int, NOT_NEGATIVE] = 1000  # no search of a tree starts after so many rollouts


@dataclass(frozen=True)
class PRMConfig:
    """Process rewards. See docs/prm.md."""

    search: SearchConfig = field(default_factory=SearchConfig)  # how trees are searched
    # trees that are searched at a time, over all hosts, each with one state in a sampler call; does not change trees
    trees: Annotated[int, POSITIVE, COUNT] = 64
