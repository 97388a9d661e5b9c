"""The keys of `companions games`.

What can be read in two ways is a setting; docs/companions/games.md says what is known of it. The paper's own text was
not available: methods are those of its published code (kkkaiaiai/NM-Method @6e315a0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from mmeureka_jax.companions.experiment import Experiment
from mmeureka_jax.companions.games.catalogue import check_game
from mmeureka_jax.config.limits import FRACTION, NOT_NEGATIVE, POSITIVE, POSITIVE_OR_NULL, AtMost
from mmeureka_jax.errors import UserError

Method = Literal[
    "mwu", "gda", "omwu", "ogda", "momwu", "mogda",
    "rm", "rm+", "cfr", "cfr+", "morm", "morm+", "mocfr", "mocfr+",
]  # fmt: skip
GRADIENT_METHODS = ("mwu", "gda", "omwu", "ogda", "momwu", "mogda")
RESTARTS = {"momwu": 50, "mogda": 50, "morm": 30, "morm+": 30, "mocfr": 30, "mocfr+": 30}  # of the published code


@dataclass(frozen=True)
class GamesConfig(Experiment):
    """An experiment of `companions games`. Defaults are those of the published code; see docs/companions/games.md."""

    run_dir: str = "runs/companions/games"  # where results are written
    # kuhn, leduc, rps, random, or a game of OpenSpiel with its parameters, such as liars_dice(dice_sides=4)
    game: str = "kuhn"
    actions: Annotated[int, POSITIVE, AtMost(256)] = 25  # of each player, in the game random
    # mwu, gda: steps of mirror descent; omwu, ogda: optimistic ones; momwu, mogda: with negative momentum. cfr: regret
    # matching in each information set, also called rm in games with one. +: regrets are never negative
    method: Method = "mocfr+"
    iterations: Annotated[int, POSITIVE, AtMost(100_000_000)] = 1000  # of a method
    # player 2 answers the new strategy of player 1; false: both answer the strategies of the iteration before
    alternating: bool = True
    learning_rate: Annotated[float, POSITIVE] = 2.0  # of mwu, gda and their forms, the paper's η
    beta: Annotated[float, FRACTION] = 0.1  # weight of the negative momentum of momwu and mogda, β
    mu: Annotated[float, NOT_NEGATIVE] = 0.01  # weight of the negative momentum of morm, mocfr and their + forms, μ
    # iterations from one restart of the momentum to the next, K; null: 50 for momwu and mogda, 30 for the others
    restart: Annotated[int | None, POSITIVE_OR_NULL] = None
    # histories: mu counts once for every history of an information set, as in the published code; plain: once
    weighting: Literal["histories", "plain"] = "histories"
    # payoffs are multiplied by 1 + perturbation * (a normal number of the seed): seeds then show what rounding decides
    perturbation: Annotated[float, NOT_NEGATIVE] = 0.0
    # iterations from one measurement to the next, besides those at 1, 3, 10, 30 and so on, and the last; 0: only those
    measure_every: Annotated[int, NOT_NEGATIVE] = 0


def problems(config: GamesConfig) -> Sequence[str]:
    """What else is wrong with a config than types and limits, also that its game cannot be had."""
    found = []
    try:
        check_game(config.game)
    except UserError as error:
        found.append(str(error))
    if config.measure_every and config.iterations // config.measure_every > 100_000:
        found.append(f"measure_every must leave at most 100,000 measurements; got {config.measure_every}")
    return found


def restart_of(config: GamesConfig) -> int:
    """Iterations from one restart to the next; 0 for a method without momentum."""
    if config.method not in RESTARTS:
        return 0
    return config.restart or RESTARTS[config.method]


def has_average(config: GamesConfig) -> bool:
    """Whether it is the average strategy that the theory of the method speaks of, and which is measured too."""
    return config.method in ("rm", "rm+", "cfr", "cfr+")


def checkpoints(config: GamesConfig) -> list[int]:
    """The iterations after which NashConv is measured, in order."""
    last = config.iterations
    measured = {last}
    power = 1
    while power <= last:
        measured |= {power, 3 * power}
        power *= 10
    if config.measure_every:
        measured |= set(range(config.measure_every, last, config.measure_every))
    return sorted(step for step in measured if step <= last)
