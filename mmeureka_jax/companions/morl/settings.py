"""The keys of the configs of `mmeureka companions morl`, and of what PDOA shares with it: data, losses and networks.

A comment above a key, or behind it, is its description in the documentation. Defaults are PRMORL's, of its repository
qianlin04/PRMORL @a742815, unless a comment says "ours": those are the miniature's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from mmeureka_jax.companions.experiment import Experiment
from mmeureka_jax.config.limits import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, AtMost

STEPS = AtMost(10_000)
EVERY_STEP = AtMost(10_000_000)
FARTHEST = 19  # steps to the farthest treasure of deep-sea-treasure


@dataclass(frozen=True)
class PolicyConfig(Experiment):
    """How preference-conditioned policies are trained from trajectories."""

    # a file of trajectories (.npz or .parquet; docs/companions/morl.md); null: they are made, for each seed its own
    data: str | None = None
    # how the made trajectories act: as their preference wants, or in 65% of the steps with an action of the wrong size;
    # on deep-sea-treasure: by shortest ways, or with 20% of random steps
    behaviour: Literal["expert", "amateur"] = "expert"
    trajectories: Annotated[int, POSITIVE, COUNT] = 400  # made trajectories (ours)
    horizon: Annotated[int, POSITIVE, STEPS] = 50  # steps of an episode; a trajectory of as many has timed out
    action_noise: Annotated[float, NOT_NEGATIVE] = 0.05  # standard deviation, of made trajectories (ours)
    reward_noise: Annotated[float, NOT_NEGATIVE] = 0.05  # standard deviation, of made trajectories (ours)
    # a trajectory's own preference: its L1-normalised return, or the one that the data tell
    preference: Literal["returns", "stored"] = "returns"
    # how far preferences are turned from the trajectory's own towards a random one; 0: not at all (the full filter)
    theta: Annotated[float, FRACTION] = 0.0
    # how policies are kept near the data; with cvae and diffusion the generative model is the policy
    regulariser: Literal["mse", "cvae", "diffusion"] = "mse"
    bc_weight: Annotated[float, NOT_NEGATIVE] = 50.0  # the factor of the regulariser's loss (c_bc)
    min_weight: Annotated[float, FRACTION] = 0.2  # regularisation weights w are uniform between this and 1
    discount: Annotated[float, FRACTION] = 0.995  # 0: critics of a single step, which need no targets
    soft_update: Annotated[float, FRACTION] = 0.005  # the share of the new parameters in the targets
    policy_every: Annotated[int, POSITIVE, STEPS] = 2  # critic updates for each update of the policy
    target_noise: Annotated[float, NOT_NEGATIVE] = 0.2  # standard deviation, on actions of the target policy
    target_noise_clip: Annotated[float, NOT_NEGATIVE] = 0.5  # the largest size of that noise
    updates: Annotated[int, POSITIVE, EVERY_STEP] = 4000  # of the critics (ours; the paper's: 1,000,000)
    batch_size: Annotated[int, POSITIVE, COUNT] = 256  # rows of an update
    learning_rate: Annotated[float, POSITIVE] = 1e-3  # of critics and policy (ours; the paper's: 3e-4)
    decay_every: Annotated[int, NOT_NEGATIVE] = 0  # updates between steps of a cosine decay to 0; 0: no decay (ours)
    clip_gradient: Annotated[float, POSITIVE] = 100.0  # the largest norm (5 in the runs of diffusion)
    hidden: Annotated[tuple[int, ...], POSITIVE, COUNT] = (64, 64)  # units of each layer (ours; the paper's: 3 x 400)
    latent: Annotated[int, POSITIVE, STEPS] = 2  # latent units of the CVAE for each dimension of an action
    diffusion_steps: Annotated[int, POSITIVE, STEPS] = 5  # in which diffusion makes an action of noise
    candidates: Annotated[int, POSITIVE, STEPS] = 10  # actions that diffusion chooses from (ours; the paper's: 50)
    target_every: Annotated[int, POSITIVE, COUNT] = 5  # policy updates between those of diffusion's target
    # updates before diffusion's target moves (ours; the paper's: 1,000)
    target_after: Annotated[int, NOT_NEGATIVE] = 200
    measure: Annotated[int, POSITIVE, STEPS] = 4  # how often a run is measured, the end included (ours)


@dataclass(frozen=True)
class MorlConfig(PolicyConfig):
    """PRMORL's: training, and the fronts of fixed and of adapted regularisation weights."""

    run_dir: str = "runs/companions/morl"  # where results are written
    # point_mass: speed and energy; the others: mo-gymnasium's, which the extra `morl` installs
    task: Literal["point_mass", "deep-sea-treasure-v0", "deep-sea-treasure-concave-v0"] = "point_mass"
    # of deep-sea-treasure: a trajectory's own preference is of its treasure and of the steps that it has spared of
    # `horizon` (ours); false: of its return, where more steps seem a wish to spare them
    spared_steps: bool = True
    preferences: Annotated[int, POSITIVE, STEPS] = 101  # even ones, for fronts
    weights: Annotated[tuple[float, ...], FRACTION] = (0.2, 0.5, 1.0)  # regularisation weights with a front each
    adapt_preferences: Annotated[int, NOT_NEGATIVE, STEPS] = 11  # even ones, whose weight is adapted (ours); 0: off
    adapt_rounds: Annotated[int, POSITIVE, STEPS] = 3  # of the adaptation, one after the other
    adapt_episodes: Annotated[int, POSITIVE, STEPS] = 10  # of a round, with a weight each
    adapt_steps: Annotated[int, POSITIVE, STEPS] = 20  # gradient steps of a round (100 for Walker2d)
    adapt_rate: Annotated[float, POSITIVE] = 0.01  # learning rate
    final_episodes: Annotated[int, POSITIVE, STEPS] = 5  # with the adapted weight


def policy_problems(config: PolicyConfig) -> Iterator[str]:
    """What is wrong with the keys of training together."""
    pairs = config.updates / config.policy_every / config.measure
    if pairs != int(pairs):
        yield (
            f"updates must be a multiple of policy_every x measure ({config.policy_every * config.measure}); "
            f"got {config.updates}"
        )
    if not config.hidden:
        yield "hidden must have a layer or more, such as [64, 64]; got []"
    if config.min_weight == 1:
        yield "min_weight must be below 1: at 1, no policy sees its preference; got 1"
    if config.decay_every > config.updates:
        yield f"decay_every must be at most updates ({config.updates}); got {config.decay_every}"
    if config.regulariser == "diffusion" and config.target_after >= config.updates:
        yield f"target_after must be below updates ({config.updates}), or diffusion's target never moves"


def problems(config: MorlConfig) -> list[str]:
    """What is wrong with the keys together, a sentence each that begins with the key."""
    found = list(policy_problems(config))
    if config.preferences < 2:
        found.append(f"preferences must be 2 or more, for a front; got {config.preferences}")
    if config.task != "point_mass" and config.horizon <= FARTHEST:
        found.append(
            f"horizon must be above {FARTHEST}, the steps to the farthest treasure of {config.task}; "
            f"got {config.horizon}"
        )
    if config.task != "point_mass" and config.preference == "stored" and config.data is None:
        found.append(f"preference must be returns for made trajectories of {config.task}, which have none stored")
    if config.adapt_preferences == 1:
        found.append("adapt_preferences must be 0, or 2 or more; got 1")
    if not config.weights or min(config.weights) < config.min_weight:
        found.append(f"weights must be numbers from min_weight ({config.min_weight}) to 1; got {list(config.weights)}")
    return found
