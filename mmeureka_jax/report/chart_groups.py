"""Which metrics a report shows together, in which charts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmeureka_jax.rewards.rules import RULES


@dataclass(frozen=True)
class Panel:
    """One pair of axes: metric name -> label, in one unit."""

    unit: str
    series: Mapping[str, str]
    # points: a line with markers; area: stacked steps; count: a bar for each step
    kind: Literal["line", "points", "area", "count"] = "line"
    scale: float = 1.0  # 100 for shares in percent
    log: bool = False  # logarithmic, where all values are positive and differ enough
    from_zero: bool = True
    whole: bool = False  # from 0 to 100, of shares that can be anything between
    smooth: bool = True  # with a moving average, where there are many points


@dataclass(frozen=True)
class Chart:
    """A figure of one panel, or of two above each other that share the steps."""

    title: str
    panels: tuple[Panel, ...]


CHART_GROUPS: dict[str, tuple[Chart, ...]] = {
    "Learning": (
        Chart("Validation accuracy", (Panel("%", {"validation/accuracy": "accuracy"}, "points", 100, whole=True),)),
        Chart(
            "Rewards",
            (
                Panel(
                    "mean per response",
                    {
                        "reward/total": "total",
                        "reward/accuracy": "accuracy",
                        "reward/format": "format",
                        "reward/repetition": "repetition",
                        "reward/overlong": "overlong",
                        "reward/custom": "custom",
                        **{f"reward/{rule}": rule for rule in RULES if rule not in ("format", "repetition")},
                    },
                    from_zero=False,
                ),
            ),
        ),
        Chart(
            "Steps of responses",
            (
                Panel("%", {"process/score": "score of the process reward model"}, whole=True, scale=100),
                Panel("steps per response", {"process/steps": "scored steps"}),
            ),
        ),
        Chart(
            "Response length",
            (
                Panel("tokens", {"response/length": "sampled", "validation/response_length": "validation, greedy"}),
                Panel("%", {"response/truncated": "truncated at the limit"}, scale=100, whole=True),
            ),
        ),
        Chart(
            "Solved by at least one of k answers",
            (
                Panel(
                    "% of problems",
                    {f"reward/pass_at_{k}": f"k = {k}" for k in (1, 2, 4, 8, 16, 32)},
                    scale=100,
                    whole=True,
                ),
            ),
        ),
        Chart(
            "Cross-entropy of step labels",
            (Panel("nats per label", {"prm/loss": "training", "validation/cross_entropy": "validation"}),),
        ),
        Chart(
            "Steps told right from wrong",
            (
                Panel("%", {"prm/accuracy": "accuracy in training"}, scale=100, whole=True),
                Panel("%", {"validation/auroc": "area under the ROC curve"}, "points", 100, whole=True),
            ),
        ),
        Chart(
            "Choice among several answers",
            (
                Panel(
                    "% of problems",
                    {
                        "validation/best_of_n/mean_odds": "best by mean odds",
                        "validation/best_of_n/mean": "best by mean",
                        "validation/best_of_n/last": "best by last step",
                        "validation/majority_vote": "majority vote",
                        "validation/random_choice": "random choice",
                    },
                    "points",
                    100,
                    whole=True,
                ),
            ),
        ),
        Chart("Imitation loss", (Panel("nats per token", {"sft/loss": "loss"}),)),
        Chart(
            "Online filter",
            (
                Panel(
                    "% of groups",
                    {"filter/kept": "kept", "filter/too_easy": "too easy", "filter/too_hard": "too hard"},
                    "area",
                    scale=100,
                    whole=True,
                ),
            ),
        ),
        Chart(
            "Filter buffer",
            (
                Panel("rounds", {"filter/rounds": "sampling rounds"}),
                Panel(
                    "groups, rollouts",
                    {"filter/buffer": "groups waiting", "filter/staleness": "staleness in steps"},
                ),
            ),
        ),
        Chart(
            "Answers the rules failed on",
            (Panel("% of responses", {"reward/failures": "a rule failed"}, "area", 100),),
        ),
    ),
    "Policy": (
        Chart(
            "Divergence",
            (
                Panel(
                    "nats per token",
                    {"policy/drift": "drift from the sampling policy", "policy/kl_reference": "KL to the reference"},
                ),
            ),
        ),
        Chart(
            "Clipped tokens",
            (
                Panel(
                    "% of tokens",
                    {"policy/clip_fraction_low": "below 1 − ε", "policy/clip_fraction_high": "above 1 + ε"},
                    scale=100,
                ),
            ),
        ),
        Chart(
            "Ratio to the sampling policy",
            (
                Panel(
                    "ratio",
                    {
                        "policy/ratio_max": "largest",
                        "policy/ratio_p999": "99.9th percentile",
                        "policy/ratio_p01": "1st percentile",
                    },
                    log=True,
                ),
            ),
        ),
        Chart(
            "Tokens that count",
            (Panel("%", {"policy/effective_sample_size": "effective sample size"}, scale=100, whole=True),),
        ),
        Chart("Entropy", (Panel("nats per token", {"policy/entropy": "entropy"}),)),
        Chart(
            "Log-prob gap, sampler to trainer",
            (
                Panel(
                    "nats per token",
                    {"policy/sampler_gap_mean": "mean", "policy/sampler_gap_max": "max"},
                    log=True,
                ),
            ),
        ),
    ),
    "Optimisation": (
        Chart(
            "Loss",
            (
                Panel(
                    "loss",
                    {
                        "loss/total": "total",
                        "loss/policy": "policy",
                        "loss/drift": "drift",
                        "loss/kl": "KL",
                        "loss/entropy": "entropy bonus",
                    },
                    from_zero=False,
                ),
            ),
        ),
        Chart(
            "Critic",
            (
                Panel(
                    "% of the variance of returns",
                    {"critic/explained_variance": "explained by the values"},
                    scale=100,
                    from_zero=False,
                ),
                Panel("loss", {"loss/value": "value loss"}),
            ),
        ),
        Chart(
            "Values and returns",
            (
                Panel(
                    "reward to come",
                    {"critic/value_mean": "mean value", "critic/return_mean": "mean return"},
                    from_zero=False,
                ),
            ),
        ),
        Chart(
            "Gradient norm and learning rate",
            (
                Panel("norm", {"optimizer/grad_norm": "gradient norm, before clipping"}),
                Panel("rate", {"optimizer/learning_rate": "learning rate"}, smooth=False),
            ),
        ),
        Chart("Skipped updates", (Panel("updates", {"optimizer/skipped": "not finite"}, "count"),)),
    ),
    "Speed": (
        Chart(
            "Throughput",
            (
                Panel(
                    "tokens per second",
                    {"time/rollout_tokens_per_s": "rollout", "time/update_tokens_per_s": "update"},
                ),
            ),
        ),
        Chart(
            "Time of a step",
            (
                Panel(
                    "seconds",
                    {
                        "time/rollout": "rollout",
                        "time/reward": "reward",
                        "time/process": "scores of steps",
                        "time/update": "update",
                        "time/validation": "validation",
                        "time/benchmarks": "benchmarks",
                        "time/checkpoint": "checkpoint",
                    },
                    "area",
                ),
            ),
        ),
        Chart("Compiled programs", (Panel("compiles", {"time/compiles": "compiles"}, "count"),)),
    ),
}


def charts_of_benchmarks(metrics: Iterable[str]) -> tuple[Chart, ...]:
    """A chart for each public benchmark that has scores among these metrics."""
    named = (re.fullmatch("benchmark/(.+)/official", metric) for metric in metrics)
    names = sorted({found[1] for found in named if found})
    return tuple(
        Chart(
            f"Benchmark {name}",
            (
                Panel(
                    "% right",
                    {f"benchmark/{name}/official": "official judge", f"benchmark/{name}/ours": "our judge"},
                    "points",
                    scale=100,
                    from_zero=False,
                ),
                Panel(
                    "% of answers",
                    {f"benchmark/{name}/{share}": share for share in ("truncated", "unparsed", "failed")},
                    "points",
                    scale=100,
                ),
            ),
        )
        for name in names
    )


def metrics_of_parts_off(config: Mapping[str, Any]) -> frozenset[str]:
    """The metrics of parts that a run's config switches off; the config may be one of an older version."""
    reward = config.get("reward")
    rl = config.get("rl")
    off: set[str] = set()
    if isinstance(reward, Mapping):
        off |= {f"reward/{rule}" for rule in ("format", "repetition", "custom") if not reward.get(f"{rule}_weight")}
        if not reward.get("overlong_buffer"):
            off.add("reward/overlong")
    if isinstance(rl, Mapping):
        if not _section(rl, "filter").get("enabled"):
            off |= {f"filter/{name}" for name in ("kept", "too_easy", "too_hard", "rounds", "buffer", "staleness")}
        for key, metrics in {
            "kl_coefficient": ("policy/kl_reference", "loss/kl"),
            "drift_coefficient": ("loss/drift",),
            "entropy_coefficient": ("loss/entropy",),
        }.items():
            off |= set(() if rl.get(key) else metrics)
        if _section(rl, "critic").get("kind") in (None, "none"):
            off |= {"critic/explained_variance", "critic/value_mean", "critic/return_mean", "loss/value"}
    return frozenset(off)


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, Mapping) else {}
