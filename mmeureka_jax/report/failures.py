"""The table of the report that says why rules of a run could not score answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mmeureka_jax.rewards.base import kind_of_failure


def draw_failures(rollouts: Iterable[tuple[int, Sequence[Mapping[str, Any]]]]) -> str:
    """A table with a row for each reason in the logged rollouts: rule, an example, share of the answers, first step."""
    answers = 0
    counts: dict[tuple[str, str], int] = {}
    firsts: dict[tuple[str, str], tuple[int, str]] = {}
    for step, groups in rollouts:
        for group in groups:
            for response in group["responses"]:
                answers += 1
                for rule, reason in failures_of(response).items():
                    kind = (rule, kind_of_failure(reason))
                    counts[kind] = counts.get(kind, 0) + 1
                    firsts.setdefault(kind, (step, reason))
    if not counts:
        return ""
    body = "".join(
        f"<tr><th scope='row'>{escape(kind[0])}</th><td>{escape(firsts[kind][1])}</td>"
        f"<td class=number>{100 * count / answers:.3g}&thinsp;%</td><td class=number>{firsts[kind][0]}</td></tr>"
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return (
        f'<p class="hint">Why a rule gave 0 without a score, in the {answers:,} answers of the logged rollouts; '
        "<i>reward/failures</i> is the share in all answers. Reasons that differ only in a value are one.</p>"
        "<table><thead><tr><th scope='col'>rule</th><th scope='col'>reason, for example</th>"
        "<th scope='col' class=number>share</th><th scope='col' class=number>first step</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def failures_of(response: Mapping[str, Any]) -> dict[str, str]:
    """Rule -> reason. Runs of an earlier version have none."""
    failures = response.get("failures")
    return {str(rule): str(reason) for rule, reason in failures.items()} if isinstance(failures, Mapping) else {}
