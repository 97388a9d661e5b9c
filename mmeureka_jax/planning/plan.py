"""A plan: the programs of a run, compiled for a target, and whether they fit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax

from mmeureka_jax.config.schema import Config
from mmeureka_jax.mesh import Program
from mmeureka_jax.planning.hlo import ProgramText
from mmeureka_jax.planning.memory import PlannedProgram, compile_programs
from mmeureka_jax.planning.planned_run import Command, PlannedRun, open_run
from mmeureka_jax.planning.step_time import Assumptions, CompiledKind, StepTime, predict_step
from mmeureka_jax.planning.targets import Target
from mmeureka_jax.process.console import progress
from mmeureka_jax.training.sizes import always_there, device_bytes

DEFAULTS = Assumptions()
Which = Literal["largest", "all"]


@dataclass(frozen=True)
class Plan:
    """What a run needs on a target.

    Attributes:
        programs: those that were compiled.
        compiles: how many the run compiles.
        texts: those of compiled programs, by their names.
        time: of a step; None: see `predict_step`.
    """

    target: Target
    run: PlannedRun
    programs: tuple[PlannedProgram, ...]
    compiles: int
    texts: dict[str, ProgramText]
    time: StepTime | None

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs)

    @property
    def compile_s(self) -> float:
        """CPU seconds of the programs that were compiled."""
        return sum(program.compile_s for program in self.programs)


def make_plan(
    config: Config,
    target: Target,
    *,
    command: Command = "train",
    which: Which = "largest",
    assumptions: Assumptions = DEFAULTS,
    quiet: bool = False,
) -> Plan:
    """Compiles the programs of a run (of a config without stages) for a target's devices.

    Args:
        which: `largest`: of each kind of program the one of the largest shapes, which decides whether the run fits.
        assumptions: for the time of a step.
        quiet: without a progress bar.

    Raises:
        UserError: the run would be refused before step 0, or the compiler fails for another reason than memory.
    """
    with tempfile.TemporaryDirectory(prefix="mmeureka-plan-") as folder:
        run = open_run(config, target, Path(folder), command)
    mesh = run.opened.mesh
    with jax.set_mesh(mesh):
        programs = run.programs().all
    chosen = largest(programs) if which == "largest" else programs
    always = always_there(
        run.learner,
        with_reference=run.recipe.with_reference,
        process_model=run.recipe.abstract_process_model(run.opened),
    )
    with progress(len(chosen), f"compile for {target.name}", unit="program", enabled=not quiet) as bar:
        planned = compile_programs(chosen, mesh, always, target.memory_bytes, bar.update)
    texts = {
        program.name: ProgramText(program.compiled.as_text() or "")
        for program in planned
        if program.compiled is not None
    }
    kinds = {
        program.name.partition(",")[0]: CompiledKind(program, texts[program.name])
        for program in largest(chosen)
        if program.name in texts
    }
    return Plan(target, run, tuple(planned), len(programs), texts, predict_step(run, target, kinds, assumptions))


def largest(programs: Sequence[Program]) -> list[Program]:
    """Of each kind (the part of the name before its sizes) the program with most bytes of arguments, and among those
    the one with the largest numbers in its name: a width is not in the shape of any argument."""
    by_kind: dict[str, list[Program]] = {}
    for program in programs:
        by_kind.setdefault(program.name.partition(",")[0], []).append(program)
    return [max(kind, key=_size) for kind in by_kind.values()]


def _size(program: Program) -> tuple[int, list[int]]:
    return device_bytes(program.arguments), [int(number) for number in re.findall(r"\d+", program.name)]
