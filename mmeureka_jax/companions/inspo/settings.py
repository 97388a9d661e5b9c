"""The keys of `mmeureka companions inspo`.

A comment above a key, or behind it, is its description in docs/reference. Where the paper's form could not be read (it
released no code), the choice is a key; docs/companions/inspo.md says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from mmeureka_jax.companions.experiment import Experiment
from mmeureka_jax.config.limits import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, AtMost

DATA_SETS = {
    "xor": ("ab_ba", "aa_ab_ba", "all", "ab", "alberdice_02_20", "alberdice_00_02_20", "alberdice_random"),
    "m_ne": ("balanced", "imbalanced"),
    "bridge": ("mix", "optimal", "random"),
}
WIDTH = AtMost(4096)  # of a network, and of its batches
STEPS = AtMost(20_000)  # whose batches are drawn together
TURN_STEPS = AtMost(1000)  # the same, of an agent's turn
EPISODES = AtMost(100_000)
HORIZON = AtMost(1000)
ACTIONS = 16  # of a matrix game


@dataclass(frozen=True)
class InspoConfig(Experiment):
    """Offline learning of two agents from the data of a game (arXiv 2412.07639)."""

    run_dir: str = "runs/companions/inspo"  # where results are written
    game: Literal["xor", "m_ne", "bridge"] = "xor"  # what is played; m_ne is a stand-in for the paper's game
    # the data set: for xor ab_ba, aa_ab_ba, all, ab, or with AlberDICE's counts alberdice_02_20, alberdice_00_02_20,
    # alberdice_random; for m_ne balanced, imbalanced; for bridge mix, optimal, random, drawn anew for each seed
    data: str = "ab_ba"
    # payoffs of the joint actions of a matrix game instead of its own, the first agent's first action first, row by row
    payoffs: tuple[float, ...] = ()
    # how often each joint action is in the data of a matrix game, in the order of payoffs, instead of those of data
    counts: Annotated[tuple[float, ...], NOT_NEGATIVE] = ()
    # tables, with expectations over the counts of the data; or a network for each agent, with batches drawn from it
    form: Literal["tabular", "network"] = "tabular"
    # inspo: agents learn in turns. simultaneous: the same, all at once. awr: all at once, without entropy.
    # awr_independent: as awr, and each takes the others to act as in the data. bc: the data's own policies
    method: Literal["inspo", "simultaneous", "awr", "awr_independent", "bc"] = "inspo"
    rounds: Annotated[int, POSITIVE, COUNT] = 200  # rounds; each agent learns once in one
    measure_every: Annotated[int, POSITIVE, COUNT] = 20  # rounds from one measurement to the next
    alpha: Annotated[float, POSITIVE] = 0.1  # weight of the divergence from the data's policy
    beta: Annotated[float, NOT_NEGATIVE] = 0.05  # weight of the entropy
    decay: Annotated[float, POSITIVE, FRACTION] = 0.97  # alpha and beta are multiplied by it after each round
    least_alpha: Annotated[float, POSITIVE] = 1e-6  # alpha does not fall below it
    # what the divergence is measured from: each agent's own behaviour, or the data's joint one, in expectation over the
    # other agent's newest policy
    regulariser: Literal["factorised", "joint"] = "factorised"
    # divide the importance weights of an agent's action by their sum over what the other agent was seen to do
    normalise: bool = False
    # value of what the data do not show: joint actions, without normalise, and states
    unseen: float = 0.0
    regularised_values: bool = False  # values of following states hold the divergence and the entropy too
    gamma: Annotated[float, FRACTION] = 1.0  # discount
    # standard deviation of what is added to the logits of the data's policies before the first round. At 0, agents
    # whose data are symmetric stay symmetric, and never choose between AB and BA
    noise: Annotated[float, NOT_NEGATIVE] = 0.1
    sweeps: Annotated[int, POSITIVE, COUNT] = 1  # tabular: backups of an agent's values before its policy is improved
    # bridge: steps after which an episode ends, in data and measurement
    horizon: Annotated[int, POSITIVE, HORIZON] = 50
    episodes: Annotated[int, POSITIVE, EPISODES] = 500  # bridge: episodes of each part of the data
    hidden: Annotated[int, POSITIVE, WIDTH] = 64  # network: units of each of the two hidden layers
    learning_rate: Annotated[float, POSITIVE] = 1e-3  # network: of Adam
    batch: Annotated[int, POSITIVE, WIDTH] = 256  # network: rows of a batch
    bc_steps: Annotated[int, POSITIVE, STEPS] = 1000  # network: steps in which the data's policies are learnt
    value_steps: Annotated[int, POSITIVE, TURN_STEPS] = 20  # network: steps of an agent's values in its turn
    policy_steps: Annotated[int, POSITIVE, TURN_STEPS] = 20  # network: steps of an agent's policy in its turn
    target_rate: Annotated[float, POSITIVE, FRACTION] = 0.05  # network: share of the new values in the target's, a step
    # network: actions that the learnt policy of the data gives a smaller share are as those that were not seen
    support: Annotated[float, POSITIVE, FRACTION] = 1e-3
    ratio_cap: Annotated[float, POSITIVE] = 100.0  # network: importance weights are at most so large (AlberDICE's cap)
    weight_cap: Annotated[float, POSITIVE] = 20.0  # network: exponents in the policy's weights are at most so large


def problems(config: InspoConfig) -> Sequence[str]:
    """What cannot be, besides limits of single keys."""
    found = []
    if config.game == "bridge":
        given = [name for name in ("payoffs", "counts") if getattr(config, name)]
        found += [f"{name} is for matrix games; leave it out with game: bridge" for name in given]
    if config.data not in DATA_SETS[config.game]:
        choices = ", ".join(DATA_SETS[config.game])
        found.append(f"data must be one of {choices} with game: {config.game}; got {config.data!r}")
    actions = math.isqrt(len(config.payoffs))
    if config.payoffs and (actions**2 != len(config.payoffs) or not 2 <= actions <= ACTIONS):
        found.append(f"payoffs must be 4, 9, 16, ... up to {ACTIONS**2} numbers; got {len(config.payoffs)}")
    if config.game != "bridge":
        joint = len(config.payoffs) or {"xor": 4, "m_ne": 9}[config.game]
        if config.payoffs and not config.counts and joint != {"xor": 4, "m_ne": 9}[config.game]:
            found.append(f"counts must be given with payoffs of another size; write {joint} numbers")
        if config.counts and (len(config.counts) != joint or not any(config.counts)):
            found.append(f"counts must be {joint} numbers, one at least above 0; got {list(config.counts)}")
    return found
