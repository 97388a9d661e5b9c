"""The keys of `prm`: process rewards, from the tree search that labels steps to the model that is trained on them.

As in schema.py, a comment above a key, or behind it, is its description in docs/reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from mmeureka_jax.config.limits import BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, POSITIVE


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
class ProcessRewardConfig:
    """Scores of steps by a process reward model, which join the advantages of `train`. See docs/prm.md."""

    # the model: a folder that `mmeureka export` wrote of a run of `mmeureka prm train`, or a hub id
    model: str | None = None
    weight: float = 0.5  # weight of its scores; at 0 they are computed and logged, and do not count
    # problems that are scored at a time, over all hosts, each with all its responses; bounds memory
    batch_size: Annotated[int, POSITIVE, COUNT] = 16


@dataclass(frozen=True)
class PRMConfig:
    """Process rewards. See docs/prm.md."""

    search: SearchConfig = field(default_factory=SearchConfig)  # how trees are searched
    # trees that are searched at a time, over all hosts, each with one state in a sampler call; raised to what the mesh
    # divides. Does not change trees
    trees: Annotated[int, POSITIVE, COUNT] = 64
    # labelled processes to train on, a file of `mmeureka prm label`; their problems are those of data.train
    labels: str | None = None
    # labelled processes to validate on, every tracking.validate_every steps; their problems are those of
    # data.validation, or of data.train where that is null; null: no validation
    validation: str | None = None
    # a folder of `mmeureka eval --data SPEC --n N`: validation (prm.validation is needed too) then also says how often
    # the best of the N answers is right, by each aggregator; null: it does not
    answers: str | None = None
    hard_labels: bool = False  # a label above 0 counts as 1
    paths_per_step: Annotated[int, POSITIVE, COUNT] = 64  # processes of one optimiser step, over all hosts
    # parts that a step is computed in; must divide prm.paths_per_step. Empty rows fill up what the mesh does not divide
    micro_batches: Annotated[int, POSITIVE] = 1
    packing: Annotated[float, BELOW_ONE] = 0.8  # as rl.packing, down from prm.max_process_tokens
    # longer processes are reported and left out, and never cut
    max_process_tokens: Annotated[int, POSITIVE, COUNT] = 1024
    validation_batch: Annotated[int, POSITIVE, COUNT] = 32  # processes scored at once in validation
