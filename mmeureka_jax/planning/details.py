"""What a plan says of each program beyond its memory, and of a step's time, as lines for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mmeureka_jax.planning.hlo import ProgramText
from mmeureka_jax.planning.search import Suggestion
from mmeureka_jax.planning.step_time import StepTime

_BUFFERS = 3  # of each program
_SMALLEST = 0.01  # of the program's largest collective, in bytes: smaller ones are not shown


def program_lines(name: str, text: ProgramText, mesh: Mapping[str, int]) -> Iterator[str]:
    """The largest arrays that a program makes, with what makes them, and what it sends between chips."""
    yield name
    for buffer in text.largest_buffers(_BUFFERS):
        times = f" x {buffer.count}" if buffer.count > 1 else ""
        yield f"  makes {size(buffer.bytes)}{times}  {buffer.shape}  {buffer.made_by}"
    found, unknown = text.collectives(mesh)
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in found:
        of_kind = sums[one.kind, " x ".join(one.axes) or f"{one.group} chips"]
        of_kind[0] += one.total_bytes
        of_kind[1] += one.count
    most = max((total for total, _ in sums.values()), default=0.0)
    for (kind, axes), (total, count) in sorted(sums.items(), key=lambda item: -item[1][0]):
        if total >= _SMALLEST * most:
            yield f"  sends {size(total)}  {kind} over {axes}, {count:,.0f} times"
    if unknown and sums:
        yield "  (for one turn of loops whose number of turns is not known)"


def time_lines(time: StepTime) -> Iterator[str]:
    """A row for each phase, and what is assumed."""
    header = ("phase", "runs", "compute", "memory", "links", "takes", "of a step", "bound by", "MFU")
    rows: list[tuple[str, ...]] = [header]
    for phase in time.phases:
        cost = phase.cost
        mfu = phase.operations.model / (phase.seconds * time.chips * time.peak)
        parts = (cost.compute, cost.memory, cost.links, phase.seconds)
        share = f"{phase.seconds / time.seconds:.0%}"
        seconds = [_seconds(part) for part in parts]
        rows.append((phase.name, f"{phase.runs:,.4g}", *seconds, share, cost.binding, f"{mfu:.1%}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield (
        f"a step takes {_seconds(time.seconds)} s: {time.tokens_per_second:,.0f} tokens/s, MFU {time.mfu:.1%} (by this "
        "table, in seconds)"
    )
    for row in rows:
        cells = [
            f"{cell:<{width}}" if place in (0, 7) else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    for sentence in time.assumed:
        yield f"assumed: {sentence}"


def suggestion_lines(found: Sequence[Suggestion]) -> Iterator[str]:
    """Settings that were tried, to be put behind the config's name."""
    yield "tried, each compiled:"
    for one in found:
        verdict = "does not fit" if not one.fits else f"{_seconds(one.step_s)} s a step" if one.step_s else "fits"
        yield f"  {verdict}: {' '.join(one.overrides)}"


def size(count: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count / 1e3:.1f} kB"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
