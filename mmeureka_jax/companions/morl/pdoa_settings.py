"""The keys of the configs of `mmeureka companions pdoa`. How policies are trained has PRMORL's keys (settings.py).

PDOA's paper (arXiv 2409.09958) has no public code, and its constants are not known to us: all defaults here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mmeureka_jax.companions.morl.settings import STEPS, PolicyConfig, policy_problems
from mmeureka_jax.config.limits import BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True)
class PdoaConfig(PolicyConfig):
    """PDOA's: training, then adaptation to demonstrators whose preferences nobody tells."""

    run_dir: str = "runs/companions/pdoa"  # where results are written
    # a trajectory's own preference: its L1-normalised return, or the one that the data tell
    preference: Literal["returns", "stored"] = "stored"
    discount: Annotated[float, FRACTION] = 0.0  # 0: critics of a single step, which need no targets
    constrained: bool = False  # a third objective, slowness, for demonstrators who keep below a speed
    demonstrators: Annotated[int, POSITIVE, COUNT] = 11  # with even preferences for speed from 0 to 1
    # the speeds that demonstrators keep below, with `constrained`; each demonstrator is met with each of them
    thresholds: Annotated[tuple[float, ...], FRACTION] = (0.2, 0.4, 0.6)
    demonstrations: Annotated[int, POSITIVE, STEPS] = 4  # trajectories of each demonstrator
    deploy_weight: Annotated[float, FRACTION] = 0.2  # the regularisation weight of the adapted policy
    td_weight: Annotated[float, NOT_NEGATIVE] = 1.0  # the factor η of the TD reward
    likelihood_weight: Annotated[float, NOT_NEGATIVE] = 1.0  # the factor λ of the action-likelihood reward
    prior_weight: Annotated[float, NOT_NEGATIVE] = 0.01  # the factor ρ of the distance to the prior N(0, 1)
    action_deviation: Annotated[float, POSITIVE] = 0.05  # of the normal around a policy's action, for its likelihood
    draws: Annotated[int, POSITIVE, STEPS] = 8  # preferences drawn for a gradient
    posterior_steps: Annotated[int, POSITIVE, COUNT] = 200  # of Adam
    posterior_rate: Annotated[float, POSITIVE] = 0.05  # learning rate of Adam
    posterior_rows: Annotated[int, POSITIVE, COUNT] = 16  # rows of the demonstrations in a step
    posterior_samples: Annotated[int, POSITIVE, COUNT] = 1000  # draws that the weight of the cost is estimated from
    # the weight of the cost is the mean of its largest share 1 - level over the posterior (CVaR); 0: the mean
    conservatism: Annotated[tuple[float, ...], BELOW_ONE] = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)


def problems(config: PdoaConfig) -> list[str]:
    """What is wrong with the keys together, a sentence each that begins with the key."""
    found = list(policy_problems(config))
    if config.demonstrators < 2:
        found.append(f"demonstrators must be 2 or more; got {config.demonstrators}")
    if config.deploy_weight < config.min_weight:
        found.append(f"deploy_weight must be from min_weight ({config.min_weight}) to 1; got {config.deploy_weight}")
    if config.constrained and not (config.thresholds and config.conservatism):
        found.append("thresholds and conservatism must have a number each, with constrained: true")
    if config.constrained and config.preference == "returns":
        found.append(
            "preference must be stored with constrained: true, whose preferences have no closed form otherwise"
        )
    if not config.constrained and config.preference == "returns" and config.behaviour == "amateur":
        found.append("preference must be stored for amateurs, or behaviour expert; got returns and amateur")
    return found
