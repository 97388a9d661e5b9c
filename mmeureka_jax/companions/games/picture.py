"""NashConv over iterations, both on logarithmic axes, of all kinds of run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mmeureka_jax.companions.experiment import Rows
from mmeureka_jax.report.charts import svg_file
from mmeureka_jax.report.comparison import COLORS, DASHES, mean_and_spread


def pictures(kinds: Mapping[str, Sequence[Rows]]) -> Mapping[str, bytes]:
    """The SVG picture by the name of its file: means over seeds, of averages dashed."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (name, runs) in enumerate(kinds.items()):
            for metric, style in (("nash_conv", "solid"), ("average", DASHES[1])):
                steps, mean, _ = mean_and_spread(runs, metric)
                if len(steps):
                    label = name if metric == "nash_conv" else f"{name} (average)"
                    axes.plot(
                        steps, mean, color=COLORS[number % len(COLORS)], linestyle=style,
                        label=label.replace("$", r"\$"),
                    )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("iterations")
        axes.set_ylabel("NashConv")
        figure.legend(loc="outside right upper", frameon=False)

    return {"nash_conv.svg": svg_file("games", (6.4, 3.6), draw)}
