"""Pictures of PRMORL's runs: fronts against the best, hypervolumes, and adapted weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmeureka_jax.companions.experiment import Rows
from mmeureka_jax.report.charts import svg_file
from mmeureka_jax.report.comparison import COLORS

Runs = Mapping[str, Sequence[Rows]]


def pictures(runs: Runs) -> dict[str, bytes]:
    """SVG by file name: front.svg, hypervolume.svg, and adapted_weight.svg where weights were adapted."""
    last = {kind: [rows[-1] for rows in of_kind] for kind, of_kind in runs.items()}
    weight = min(
        key.split("/w")[1] for rows in last.values() for row in rows for key in row if key.startswith("front/")
    )
    found = {"front.svg": _front(last, weight), "hypervolume.svg": _hypervolume(last, weight)}
    if any("adapted/weights" in row for rows in last.values() for row in rows):
        found["adapted_weight.svg"] = _adapted(last)
    return found


def svg_of(name: str, draw: Any, size: tuple[float, float] = (5.2, 3.4)) -> bytes:
    """What `draw` draws on axes, as an SVG file."""
    return svg_file(name, size, lambda figure: draw(figure.subplots()))


def color_of(number: int) -> str:
    """The colour of a kind by its place."""
    return COLORS[number % len(COLORS)]


def _front(last: Mapping[str, Sequence[Mapping[str, Any]]], weight: str) -> bytes:
    def draw(axes: Any) -> None:
        best: dict[str, Any] = {}
        for number, (kind, rows) in enumerate(last.items()):
            for place, row in enumerate(rows):
                points = np.array(row.get(f"front/w{weight}", np.zeros((0, 2))))
                axes.plot(
                    points[:, 0], points[:, 1], ".", markersize=3, alpha=0.5, color=color_of(number),
                    label=None if place else kind,
                )  # fmt: skip
                best[str(row["best/front"])] = row["best/front"]
        for place, front in enumerate(best.values()):
            axes.plot(*np.array(front).T, color="#1f2933", linewidth=0.9, label=None if place else "best")
        first, second = next(row["objectives"] for rows in last.values() for row in rows)
        axes.set_xlabel(f"return: {first}")
        axes.set_ylabel(f"return: {second}")
        axes.set_title(f"fronts with w = {weight}, all seeds", loc="left")
        axes.legend(frameon=False)

    return svg_of("front", draw)


def _hypervolume(last: Mapping[str, Sequence[Mapping[str, Any]]], weight: str) -> bytes:
    names = sorted({key for rows in last.values() for row in rows for key in row if key.startswith("hypervolume/")})

    def draw(axes: Any) -> None:
        for place, name in enumerate(names):
            for number, rows in enumerate(last.values()):
                values = [row[name] for row in rows if name in row]
                if values:
                    at = number + (place - (len(names) - 1) / 2) * 0.2
                    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                    label = name.partition("/")[2].replace("w", "w = ") if number == 0 else None
                    axes.bar(at, np.mean(values), 0.18, yerr=deviation, color=color_of(place), label=label)
        for place, best in enumerate(sorted({row["best/hypervolume"] for rows in last.values() for row in rows})):
            label = None if place else "best for each preference"
            axes.axhline(best, color="#1f2933", linewidth=0.9, label=label)
        axes.set_xticks(range(len(last)), [kind.replace("$", r"\$") for kind in last], rotation=20, ha="right")
        axes.set_ylabel("hypervolume")
        axes.legend(frameon=False, loc="lower right", fontsize=7)

    return svg_of("hypervolume", draw, (1.6 + 0.9 * len(last), 3.4))


def _adapted(last: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    def draw(axes: Any) -> None:
        for number, (kind, rows) in enumerate(last.items()):
            has = [row for row in rows if "adapted/weights" in row]
            if has:
                at = np.array(has[0]["adapted/preferences"])
                weights = np.array([row["adapted/weights"] for row in has])
                axes.plot(at, weights.mean(axis=0), marker="o", markersize=2.5, color=color_of(number), label=kind)
                best = np.array([row["exhaust/weights"] for row in has])
                axes.plot(at, best.mean(axis=0), linestyle=":", color=color_of(number))
        for limit in (0.385, 0.815):
            axes.axhline(limit, color="#b8c0ca", linewidth=0.8)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("preference for the first objective")
        axes.set_ylabel("weight")
        axes.set_title("adapted weights; dotted: the best of all weights", loc="left")
        axes.legend(frameon=False, fontsize=7)

    return svg_of("adapted", draw)
