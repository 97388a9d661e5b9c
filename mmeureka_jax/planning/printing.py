"""A plan as a table for a terminal, and as the JSON object that scripts read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmeureka_jax.planning.details import program_lines, suggestion_lines, time_lines
from mmeureka_jax.planning.memory import HEADROOM, PlannedProgram
from mmeureka_jax.planning.plan import Plan
from mmeureka_jax.planning.search import Suggestion
from mmeureka_jax.process.console import duration, plural

_BAR = 20  # characters


def as_json(plan: Plan, found: Sequence[Suggestion] = ()) -> dict[str, Any]:
    """The object that `mmeureka plan --json` prints. Its keys are fixed: scripts rely on them."""
    return {
        "target": plan.target.name,
        "chips": len(plan.target.devices),
        "fits": plan.fits,
        "limit_bytes": plan.target.memory_bytes,
        "programs": [
            {
                "name": program.name,
                "peak_bytes": program.memory.peak,
                "sum_bytes": program.memory.sum,
                "resident_bytes": program.resident_bytes,
                "compile_s": round(program.compile_s, 2),
                "fits": program.fits,
            }
            for program in plan.programs
        ],
        "compiles": plan.compiles,
        "compile_s": round(plan.compile_s, 2),
        "step_s": round(plan.time.seconds, 3) if plan.time else None,
        "mfu": round(plan.time.mfu, 4) if plan.time else None,
        "binding": plan.time.binding if plan.time else None,
        "suggestions": [
            {"overrides": list(one.overrides), "fits": one.fits, "step_s": round(one.step_s, 3) if one.step_s else None}
            for one in found
        ],
    }


def as_text(plan: Plan, found: Sequence[Suggestion] = ()) -> str:
    """The same for people: programs against the memory of a device, then the verdict."""
    target = plan.target
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.run.opened.mesh.shape.items())
    lines = [
        f"{target.name}: {len(target.devices)} x {target.kind}, {target.memory_bytes / 1e9:.1f} GB each; mesh {mesh}",
        *(f"assumed: {sentence}" for sentence in plan.run.assumptions),
        "",
        *_table(plan.programs),
        "",
        _verdict(plan),
        f"{plural(plan.compiles, 'program')} in a run; {plural(len(plan.programs), 'program')} compiled here in "
        f"{duration(plan.compile_s)} of CPU time",
        "",
        *(line for name, text in plan.texts.items() for line in program_lines(name, text, plan.run.opened.mesh.shape)),
    ]
    if plan.time is not None:
        lines += ["", *time_lines(plan.time)]
    if found:
        lines += ["", *suggestion_lines(found)]
    return "\n".join(lines)


def _table(programs: tuple[PlannedProgram, ...]) -> list[str]:
    """One row a program, on a device. `peak` is what the compiler says is live at a time, `sum` everything that it
    lays out side by side; `together` is the peak and what lies there besides (`resident`)."""
    unit, name_of_unit = (1e9, "GB") if max(program.needed_bytes for program in programs) > 1e8 else (1e6, "MB")
    width = max(len(program.name) for program in programs)
    names = ("arguments", "temporaries", "outputs", "peak", "sum", "resident", "together")
    header = f"{name_of_unit + ' a device':<{width}}  " + "  ".join(f"{name:>{max(len(name), 6)}}" for name in names)
    rows = []
    for program in programs:
        memory = program.memory
        sizes = (
            memory.arguments,
            memory.temporaries,
            memory.outputs - memory.aliased,
            memory.peak,
            memory.sum,
            program.resident_bytes,
            program.needed_bytes,
        )
        cells = [f"{size / unit:>{max(len(name), 6)}.2f}" for name, size in zip(names, sizes, strict=True)]
        rows.append(f"{program.name:<{width}}  " + "  ".join(cells) + f"  {_bar(program)}")
    return [header, *rows]


def _bar(program: PlannedProgram) -> str:
    """How much of the device's memory is needed, with a mark where the headroom begins."""
    if program.compiled is None:
        return "refused by the compiler"
    share = program.needed_bytes / program.limit_bytes
    filled = min(round(share * _BAR), _BAR)
    bar = list("#" * filled + "." * (_BAR - filled))
    bar[round((1 - HEADROOM) * _BAR)] = "|"
    return f"[{''.join(bar)}] {share:4.0%}" + ("" if program.fits else "  does not fit")


def _verdict(plan: Plan) -> str:
    worst = max(plan.programs, key=lambda program: program.needed_bytes)
    if not plan.fits:
        names = ", ".join(program.name for program in plan.programs if not program.fits)
        return f"does not fit: {names}. {HEADROOM:.0%} of a device's memory is kept free"
    share = worst.needed_bytes / worst.limit_bytes
    return f"fits: at most {share:.0%} of a device's memory is needed, by {worst.name}"
