"""Programs compiled for devices that need not be there, and what a device holds while each of them runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.mesh import Program
from mmeureka_jax.process.cpu import cores
from mmeureka_jax.training.sizes import device_bytes, held_beside

HEADROOM = 0.1  # of a device's memory, which no plan uses: fragments, the runtime's own buffers, collectives


@dataclass(frozen=True)
class ProgramMemory:
    """Bytes on one device, as the compiler counts them.

    Attributes:
        aliased: of the outputs, those that take the place of donated arguments.
        peak: the most that is live at a time, arguments and outputs included.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int

    @property
    def sum(self) -> int:
        """Everything side by side. The temporaries are laid out in one block, which fragments: more than the peak."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclass(frozen=True)
class PlannedProgram:
    """A program of the run, compiled.

    Attributes:
        memory: of a program that the compiler refuses, what its message says.
        resident_bytes: what a device holds besides, see `training/sizes.py`.
        compile_s: CPU seconds; where several are compiled at a time, by their shares of the elapsed time.
        limit_bytes: memory of a device.
        compiled: None if the compiler refuses it for want of memory.
    """

    name: str
    program: Program
    memory: ProgramMemory
    resident_bytes: int
    compile_s: float
    limit_bytes: int
    compiled: jax.stages.Compiled | None

    @property
    def needed_bytes(self) -> int:
        """Peak and resident together."""
        return self.memory.peak + self.resident_bytes

    @property
    def fits(self) -> bool:
        """With headroom."""
        return self.compiled is not None and self.needed_bytes <= (1 - HEADROOM) * self.limit_bytes


def compile_programs(
    programs: Sequence[Program],
    mesh: Mesh,
    always: Any,
    limit_bytes: int,
    on_each: Callable[[], object] = lambda: None,
) -> list[PlannedProgram]:
    """Compiles programs for the devices of a mesh, as many at a time as there are cores.

    Args:
        always: see `sizes.always_there`.
        limit_bytes: memory of a device.
        on_each: called as each is ready.

    Raises:
        UserError: the compiler fails for another reason than memory.
    """
    started = time.process_time()

    is_cpu = mesh.devices.flat[0].platform == "cpu"

    def compile_one(program: Program) -> tuple[PlannedProgram, float]:
        began = time.perf_counter()
        with jax.set_mesh(mesh):
            planned = _planned(program, always, limit_bytes, is_cpu)
        on_each()
        return planned, time.perf_counter() - began

    with ThreadPoolExecutor(cores(), thread_name_prefix="compiler") as pool:
        try:
            results = list(pool.map(compile_one, programs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    cpu_seconds = time.process_time() - started
    elapsed = sum(seconds for _, seconds in results) or 1.0
    return [replace(planned, compile_s=cpu_seconds * seconds / elapsed) for planned, seconds in results]


def _planned(program: Program, always: Any, limit_bytes: int, is_cpu: bool) -> PlannedProgram:
    """The program compiled; its time is not known yet."""
    arguments = jax.tree.leaves(program.arguments)
    compiled: jax.stages.Compiled | None = None
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise UserError(f"{program.name}: the compiler fails ({brief(error)})") from error
        memory = ProgramMemory(device_bytes(arguments), 0, 0, 0, bytes_in(str(error)))
        kept = arguments
    if compiled is not None:
        memory = memory_of(compiled, is_cpu=is_cpu)
        kept = _kept(compiled, program)
    resident = device_bytes(held_beside(program, always, kept))
    return PlannedProgram(program.name, program, memory, resident, 0.0, limit_bytes, compiled)


def _kept(compiled: jax.stages.Compiled, program: Program) -> list[Any]:
    """The arguments that the compiled program has: JAX leaves out those that nothing reads."""
    shardings, _ = compiled.input_shardings
    descriptions, _ = compiled.args_info
    dynamic = zip(descriptions, shardings, strict=True)  # not the static ones, which are no arrays
    kept: list[Any] = []
    for argument in program.arguments:
        leaves = jax.tree.leaves(argument)
        if not any(hasattr(leaf, "shape") for leaf in leaves):
            continue  # a static one, or a number
        shapes = [np.shape(leaf) for leaf in leaves]
        pair = next(pair for pair in dynamic if [leaf.shape for leaf in jax.tree.leaves(pair[0])] == shapes)
        used = jax.tree.map(lambda _, sharding: sharding is not None, *pair)
        kept += [leaf for leaf, is_used in zip(leaves, jax.tree.leaves(used), strict=True) if is_used]
    return kept


def memory_of(compiled: jax.stages.Compiled, *, is_cpu: bool = False) -> ProgramMemory:
    """The compiler's own account of a program.

    Args:
        is_cpu: it is compiled for a CPU. XLA leaves a program's temporaries out of its peak there: the sum is taken.
    """
    stats: Any = compiled.memory_analysis()
    memory = ProgramMemory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
    )
    return replace(memory, peak=memory.sum) if is_cpu else memory


_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_in(message: str) -> int:
    """The bytes that a compiler's message about memory says are needed: the first number in it with a unit."""
    found = re.search(r"([\d.]+)([KMGT]?)i?B?\b(?= of |\))", message)
    return round(float(found[1]) * _SIZES[found[2]]) if found else 0
