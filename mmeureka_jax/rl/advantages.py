"""Advantages: the rewards of each group [P, n] turned into an advantage for every token [P, n, T].

In three stages, on the host, over all the groups that are trained on together:

    1. rewards [P, n] -> one advantage per response: the estimator that `rl.advantage` names, times ADORA's weight
    2. spread over the response's tokens; scores of steps and a KL penalty in the reward make what is still to come
       count at each of them
    3. whitened over all tokens of the batch, where the estimator's source does so

With a critic (`rl.advantage: gae`) the first two are one: `gae` of its values.

The first is a plain function (rewards, *, settings) -> advantages, which `@register` makes available under its name;
its settings are config keys, as in losses.py. All hosts hold all groups and compute the same numbers, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.rl.groups import Group
from mmeureka_jax.rl.settings import chosen_settings
from mmeureka_jax.user_code import load_explained

SIGNATURE = "function(rewards) -> advantages"  # an estimator's; both [P, n]
_REWARD_LIMIT = 10.0  # at most, what a response is given before a KL penalty is added
_ADORA_CORRECT = 0.5  # accuracy above which an answer counts as right


@dataclass(frozen=True)
class Estimator:
    """An advantage estimator that `rl.advantage` names.

    Attributes:
        function: its keyword-only arguments are its settings.
        compares: it compares the responses to a prompt, so a group needs at least two.
        whitened: its source whitens the advantages of a batch, hence so does `rl.whiten: auto`.
        critic: it reads the values of a critic. Its settings are then keys of `rl.critic`.
    """

    function: Callable[..., np.ndarray]
    compares: bool = False
    whitened: bool = False
    critic: bool = False


ADVANTAGES: dict[str, Estimator] = {}
F = TypeVar("F", bound=Callable[..., np.ndarray])


def register(*, compares: bool = False, whitened: bool = False, critic: bool = False) -> Callable[[F], F]:
    """Enters a function in `ADVANTAGES` under its own name, with the facts that `Estimator` describes."""

    def enter(function: F) -> F:
        ADVANTAGES[function.__name__] = Estimator(function, compares, whitened, critic)
        return function

    return enter


def _centre(rewards: Float[np.ndarray, "P n"]) -> tuple[Float[np.ndarray, "P n"], Bool[np.ndarray, "P 1"]]:
    """Rewards minus their group's mean, and whether a group's rewards differ at all.

    Where they do not, the result is set to 0: the mean of eight times 0.9 need not be 0.9, and the rounding error
    divided by its own standard deviation would be an advantage of order 1.
    """
    rewards = np.asarray(rewards, np.float64)
    varied = np.any(rewards != rewards[:, :1], axis=1, keepdims=True)
    return np.where(varied, rewards - rewards.mean(axis=1, keepdims=True), 0.0), varied


def _standard_deviation(centred: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P 1"]:
    """The sample standard deviation (ddof = 1) of each group; 0 for a group of one."""
    return np.sqrt(np.sum(centred**2, axis=1, keepdims=True) / max(centred.shape[1] - 1, 1))


@register(compares=True)
def grpo(rewards: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
    """Group-relative advantages, (R - mean) / (std + 1e-9).

    The standard deviation has ddof = 1, as in MM-EUREKA's code (`group_norm` there). A group whose rewards are
    all equal has advantage exactly 0.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2, outcome supervision; MM-EUREKA (arXiv 2503.07365).
    """
    centred, _ = _centre(rewards)
    return centred / (_standard_deviation(centred) + 1e-9)


@register(compares=True)
def dr_grpo(rewards: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
    """R - mean of the group. Exactly 0 where all rewards of a group are equal.

    Source: Dr. GRPO (arXiv 2503.20783), section 3.2, which goes with `token_averaging: constant`.
    """
    return _centre(rewards)[0]


@register(compares=True, whitened=True)
def rloo(rewards: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
    """R minus the mean reward of the other n - 1 responses. Exactly 0 where all rewards of a group are equal.

    Source: RLOO (arXiv 2402.14740), equation 8; whitened in MM-EUREKA's code.
    """
    n = rewards.shape[1]
    return _centre(rewards)[0] * (n / (n - 1))


@register(compares=True, whitened=True)
def reinforce_baseline(rewards: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
    """R - mean of the group, as `dr_grpo`, and whitened.

    Source: REINFORCE++-baseline (arXiv 2501.03262).
    """
    return _centre(rewards)[0]


@register(whitened=True)
def reinforce_pp(rewards: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
    """R itself. The only baseline is the mean that whitening takes off.

    Source: REINFORCE++ (arXiv 2501.03262).
    """
    return np.asarray(rewards, np.float64)


@register(compares=True)
def cpgd(
    rewards: Float[np.ndarray, "P n"],
    *,
    cpgd_weight: Literal["equal", "std", "clip_filter"] = "std",
    cpgd_weight_cap: float = 3.0,
) -> Float[np.ndarray, "P n"]:
    """CPGD's weighted advantages, w(x) * (R - mean).

    A group whose rewards are all equal has advantage exactly 0.

    Args:
        cpgd_weight: how much a prompt x counts.
            `equal`: w = 1.
            `std`: w = 1 / (std + 1e-6), with ddof = 1; prompts that are nearly solved or nearly hopeless count as much
            as the others.
            `clip_filter`: w = min(cap, #prompts / #prompts with std > 0), the same for all prompts; makes up for the
            prompts that teach nothing. It counts the rows given, so give it all the groups that are trained on
            together (every host's, every micro-batch's), not a share of them.
        cpgd_weight_cap: the largest weight of `clip_filter`; the other two ignore it.

    Source: CPGD (arXiv 2505.12504), the weighting factor of the advantage.
    """
    centred, varied = _centre(rewards)
    if cpgd_weight == "equal":
        return centred
    if cpgd_weight == "std":
        return centred / (_standard_deviation(centred) + 1e-6)
    if cpgd_weight == "clip_filter":
        return centred * min(cpgd_weight_cap, len(rewards) / max(varied.sum(), 1))
    raise ValueError(f"CPGD weights are equal, std and clip_filter; got {cpgd_weight!r}")


def make_estimator(config: RLConfig) -> Callable[[Float[np.ndarray, "P n"]], Float[np.ndarray, "P n"]]:
    """The estimator that `rl.advantage` names (one that reads no critic), with its settings.

    Raises:
        UserError: `rl.advantage` names a function of a file that is not there or does not fit; or, later, it fails.
    """
    known = ADVANTAGES.get(config.advantage)
    function = known.function if known else load_explained("rl.advantage", config.advantage, SIGNATURE)
    return partial(function, **chosen_settings(function, config))


def reads_critic(config: RLConfig) -> bool:
    """Whether the estimator that `rl.advantage` names needs a critic."""
    known = ADVANTAGES.get(config.advantage)
    return known is not None and known.critic


def is_whitened(config: RLConfig) -> bool:
    """Whether advantages are whitened: by `rl.whiten`, or with `auto` by the source of the estimator."""
    if config.whiten == "auto":
        known = ADVANTAGES.get(config.advantage)
        return known is not None and known.whitened
    return config.whiten == "on"


@dataclass(frozen=True)
class Outcomes:
    """What rollouts came to, of all the groups that are trained on together.

    Attributes:
        rewards: of each response, all rules together.
        accuracies: only the accuracy rule's, 0 to 1.
        lengths: tokens, the end token included.
        finished: it ended by itself, before the length limit.
    """

    rewards: Float[np.ndarray, "P n"]
    accuracies: Float[np.ndarray, "P n"]
    lengths: Int[np.ndarray, "P n"]
    finished: Bool[np.ndarray, "P n"]

    @staticmethod
    def of(groups: Sequence[Group]) -> Outcomes:
        return Outcomes(
            rewards=np.stack([group.rewards for group in groups]),
            accuracies=np.stack([group.accuracies for group in groups]),
            lengths=np.stack([group.lengths for group in groups]),
            finished=np.stack([group.finished for group in groups]),
        )

    def mask(self, length: int) -> Bool[np.ndarray, "P n T"]:
        return np.arange(length) < self.lengths[..., None]


@dataclass(frozen=True)
class ProcessRewards:
    """Rewards of the steps of all the groups that are trained on together, by a process reward model.

    Attributes:
        scores: of the step that ends at a token; NaN where none does that has a score.
        weight: what they count in advantages.
    """

    scores: Float[np.ndarray, "P n T"]
    weight: float


def process_advantages(process: ProcessRewards, config: RLConfig) -> Float[np.ndarray, "P n T"]:
    """What steps add to the advantage of a token: the weight times the sum over the steps that end there or later of
    what the estimator makes of the scores of all steps of the group.

    The estimator gets the scores of a group as it gets the rewards of one: [1, steps], response after response. Where
    it compares, or is the user's own, a single step adds 0.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.3, process supervision, where the estimator is `grpo`.
    """
    known = ADVANTAGES.get(config.advantage)
    fewest = 2 if known is None or known.compares else 1
    ends = ~np.isnan(process.scores)
    of_steps = np.zeros(process.scores.shape)
    for group, places in enumerate(ends):
        scores = np.asarray(process.scores[group][places], np.float64)
        if len(scores) >= fewest:
            of_steps[group][places] = _estimated(config, scores[None])[0]
    return process.weight * returns_to_go(of_steps)


def adora_weights(outcomes: Outcomes, reduced: float) -> Float[np.ndarray, "P 1"]:
    """ADORA's weight of each prompt: `reduced` where length does not help, else 1.

    L+ is the longest right answer, L- the mean length of the wrong ones that ended before the limit (infinite without
    any). The weight is 1 where L+ > L-, and where nothing was right.

    Source: ADORA ("Training Reasoning Model with Dynamic Advantage Estimation"), as MM-EUREKA's code has it.
    """
    right = outcomes.accuracies > _ADORA_CORRECT
    wrong = ~right & outcomes.finished
    longest = np.max(np.where(right, outcomes.lengths, 0), axis=1, keepdims=True)
    count = wrong.sum(axis=1, keepdims=True)
    mean = np.sum(np.where(wrong, outcomes.lengths, 0), axis=1, keepdims=True) / np.maximum(count, 1)
    mean = np.where(count > 0, mean, np.inf)
    return np.where((longest > mean) | ~right.any(axis=1, keepdims=True), 1.0, reduced)


def returns_to_go(per_token: Float[np.ndarray, "P n T"]) -> Float[np.ndarray, "P n T"]:
    """The sum from each token to the last one (no discount)."""
    return np.cumsum(per_token[..., ::-1], axis=-1)[..., ::-1]


def whiten(
    advantages: Float[np.ndarray, "P n T"], mask: Bool[np.ndarray, "P n T"], smallest_variance: float = 1e-8
) -> Float[np.ndarray, "P n T"]:
    """(A - mean) / std over all tokens of the batch (ddof = 0); 0 where there is none.

    A long response counts as often as it has tokens. Advantages of 0 do not stay 0: the mean is taken off them too.

    Source: OpenRLHF's replay buffer, which MM-EUREKA uses for every estimator but `group_norm`.
    """
    values = advantages[mask]
    if not values.size or np.ptp(values) == 0:
        return np.zeros_like(advantages)
    return np.where(mask, (advantages - values.mean()) / np.sqrt(max(values.var(), smallest_variance)), 0.0)


def _estimated(config: RLConfig, rewards: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
    """What the estimator that `rl.advantage` names makes of rewards.

    Raises:
        UserError: a function of the user's own returns something else than a number for each.
    """
    returned = make_estimator(config)(rewards)
    try:
        advantages = np.asarray(returned, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"rl.advantage={config.advantage} returned no array of numbers: {brief(error)}") from error
    if advantages.shape != rewards.shape:
        raise UserError(
            f"rl.advantage={config.advantage} returned shape {advantages.shape}; expected {rewards.shape}, "
            "an advantage for each response"
        )
    if config.advantage not in ADVANTAGES and not np.isfinite(advantages).all():
        raise UserError(
            f"rl.advantage={config.advantage} returned NaN or infinity; expected a number for each response"
        )
    return advantages


def compute_advantages(
    outcomes: Outcomes,
    config: RLConfig,
    length: int,
    kl_penalties: Float[np.ndarray, "P n T"] | None = None,
    process: ProcessRewards | None = None,
) -> Float[np.ndarray, "P n T"]:
    """The advantage of every token, 0 after a response's end, in float32.

    Give it all the groups that are trained on together: `cpgd` and whitening look at the whole batch.

    Args:
        length: T.
        kl_penalties: what `rl.kl_place: reward` takes off the reward at each token.
        process: rewards of steps.
    """
    mask = outcomes.mask(length)
    per_response = _estimated(config, np.asarray(outcomes.rewards, np.float64))
    weights = 1.0 if config.adora_weight is None else adora_weights(outcomes, config.adora_weight)
    per_response = per_response * weights
    if kl_penalties is not None:
        per_response = _limited(per_response)
    advantages = np.where(mask, per_response[..., None], 0.0)
    if process is not None:
        advantages = np.where(mask, advantages + np.expand_dims(weights, -1) * process_advantages(process, config), 0.0)
    if kl_penalties is not None:
        advantages = np.where(mask, advantages - returns_to_go(np.where(mask, kl_penalties, 0.0)), 0.0)
    return _finished(advantages, mask, config)


@register(whitened=True, critic=True)
def gae(
    rewards: Float[np.ndarray, "P n T"],
    values: Float[np.ndarray, "P n T"],
    mask: Bool[np.ndarray, "P n T"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
) -> Float[np.ndarray, "P n T"]:
    """Generalised advantage estimates, sum over k of (gamma lambda)^k delta_{t+k}, with delta_t = r_t + gamma V_{t+1} -
    V_t; 0 after a response's end.

    Nothing is worth anything after the last token, whether the response ended by itself or at the length limit.

    Args:
        rewards: of each token.
        values: V_t, what is predicted before token t is drawn.

    Source: GAE (arXiv 1506.02438), equation 16, with an end; whitened in PPO's implementations for language (TRL,
    OpenRLHF, verl).
    """
    rewards, values = (np.where(mask, np.asarray(x, np.float64), 0.0) for x in (rewards, values))
    following = np.concatenate([values[..., 1:], np.zeros_like(values[..., :1])], axis=-1)
    deltas = rewards + gamma * following - values
    advantages = np.zeros_like(deltas)
    ahead = np.zeros(deltas.shape[:-1])
    for place in reversed(range(deltas.shape[-1])):
        advantages[..., place] = ahead = deltas[..., place] + gamma * gae_lambda * ahead
    return np.where(mask, advantages, 0.0)


def gae_advantages(
    outcomes: Outcomes,
    config: RLConfig,
    values: Float[np.ndarray, "P n T"],
    kl_penalties: Float[np.ndarray, "P n T"] | None = None,
    process: ProcessRewards | None = None,
) -> tuple[Float[np.ndarray, "P n T"], Float[np.ndarray, "P n T"]]:
    """Advantages by `gae`, whitened unless `rl.whiten` is off, and the returns that the critic learns: the advantages
    before that, plus the values. Both are 0 after a response's end, in float32.

    The reward of a response is that of its last token, and the weighted score of a step that of the token in which it
    ends; see `compute_advantages` for the KL penalty.
    """
    mask = outcomes.mask(values.shape[-1])
    scores = np.asarray(outcomes.rewards, np.float64)
    rewards = np.zeros(values.shape)
    if kl_penalties is not None:
        scores = _limited(scores)
        rewards = -np.where(mask, kl_penalties, 0.0)
    rewards += np.where(np.arange(values.shape[-1]) == outcomes.lengths[..., None] - 1, scores[..., None], 0.0)
    if process is not None:
        rewards += process.weight * np.nan_to_num(process.scores)
    advantages = gae(rewards, values, mask, **chosen_settings(gae, config.critic))
    returns = np.where(mask, advantages + values, 0.0)
    return _finished(advantages, mask, config), returns.astype(np.float32)


def _limited(rewards: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
    """What responses are given, baseline and weight of the prompt included, within ±10.

    Source: `compute_reward` of OpenRLHF and MM-EUREKA. There it holds without a penalty too; here it does not, so that
    large rewards of the user's own are not cut unasked. Those of the built-in rules never come near it.
    """
    return np.clip(rewards, -_REWARD_LIMIT, _REWARD_LIMIT)


def _finished(
    advantages: Float[np.ndarray, "P n T"], mask: Bool[np.ndarray, "P n T"], config: RLConfig
) -> Float[np.ndarray, "P n T"]:
    """In float32, whitened where the config or the estimator's source says so."""
    if is_whitened(config):
        advantages = whiten(advantages, mask)
    return advantages.astype(np.float32)
