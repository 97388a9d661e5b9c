"""Bytes that a compiled program moves between a device's main memory and its processor, with loops counted by trips.

As XLA's own cost analysis has it for programs without loops: each operation reads its operands and writes its results,
what is fused stays on the chip, and of an array that is only sliced or updated in place only that part counts. What
lies in a TPU's on-chip memory moves for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmeureka_jax.planning.hlo import (
    FIRST_PIECE,
    NO_BUFFER,
    Instruction,
    ProgramText,
    attribute,
    called_by,
    is_piece,
)

_PARTS = {"dynamic-slice", "slice", "gather"}
_RENAMES = {"bitcast", "reshape", "copy", "convert", "transpose"}


def bytes_moved(program: ProgramText, unknown_trips: Sequence[float] = (), costliest: float = 1.0) -> float:
    """
    Args:
        unknown_trips: see `ProgramText.collectives`; 1 where it says nothing.
        costliest: of the times that a branch is taken, the share of the one that moves most; the others, of the one
            that moves least.
    """
    return _Traffic(program, tuple(unknown_trips), costliest).of(program.entry, 0)


class _Traffic:
    def __init__(self, program: ProgramText, unknown_trips: tuple[float, ...], costliest: float):
        self.program = program
        self.unknown_trips = unknown_trips
        self.costliest = costliest
        self._known: dict[tuple[str, int], float] = {}

    def of(self, name: str, depth: int) -> float:
        """Bytes that one run of a computation moves."""
        if (name, depth) not in self._known:
            instructions = self.program.computations[name].instructions
            self._known[name, depth] = sum(self._one(name, instruction, depth) for instruction in instructions)
        return self._known[name, depth]

    def _one(self, name: str, instruction: Instruction, depth: int) -> float:
        opcode = instruction.opcode
        if opcode == "while":
            return self._loop(name, instruction, depth)
        if opcode == "conditional":
            branches = [self.of(branch, depth) for branch in called_by(instruction)]
            return self.costliest * max(branches) + (1 - self.costliest) * min(branches)
        if opcode == "call":
            return sum(self.of(called, depth) for called in called_by(instruction))
        if opcode == "fusion":
            return self._fusion(name, instruction)
        if opcode in _PARTS:
            return 2 * self._written(instruction)
        if opcode == "dynamic-update-slice":
            return 2 * self._read(name, instruction.operands[1])
        if opcode == "copy-start":
            return sum(shape.bytes for shape in instruction.shapes[:2] if self._counts(shape.in_main_memory))
        if opcode == "slice-start":  # returns what it slices, the slice, and what it waits with
            whole, part = instruction.shapes[:2]
            return sum(part.bytes for shape in (whole, part) if self._counts(shape.in_main_memory))
        if opcode in NO_BUFFER:
            return 0.0
        return self._written(instruction) + sum(self._read(name, operand) for operand in instruction.operands)

    def _loop(self, name: str, loop: Instruction, depth: int) -> float:
        body = attribute(loop, "body")
        trips = self.program.trips(name, loop)
        if trips is not None:
            return trips * self.of(body, depth)
        given = self.unknown_trips[depth] if depth < len(self.unknown_trips) else 1
        return given * self.of(body, depth + 1)

    def _counts(self, in_main_memory: bool) -> bool:
        return in_main_memory or not self.program.is_tpu

    def _written(self, instruction: Instruction) -> float:
        return sum(shape.bytes for shape in instruction.shapes if self._counts(shape.in_main_memory))

    def _read(self, name: str, operand: str) -> float:
        instruction = self.program.computations[name].by_name.get(operand)
        return 0.0 if instruction is None else self._written(instruction)

    def _fusion(self, name: str, fusion: Instruction) -> float:
        called = attribute(fusion, "calls")
        pieces = {one.name for one in self.program.computations[called].instructions if is_piece(one)}
        if pieces:
            return self._with_pieces(name, fusion, called, pieces)
        read = sum(self._read_by_fusion(name, fusion, called, number) for number in range(len(fusion.operands)))
        written = self._written(fusion)
        return read + (min(written, self._written_by_root(called, written)) if written else 0.0)

    def _with_pieces(self, name: str, fusion: Instruction, called: str, pieces: set[str]) -> float:
        """A fusion that does pieces of collectives, each of which passes on whole arrays: they are counted where the
        collective begins."""
        *others, root = self.program.computations[called].instructions
        if fusion.name.startswith(FIRST_PIECE):
            read = sum(self._read(name, operand) for operand in fusion.operands)
            return read + sum(self._written(one) for one in others if one.name in pieces)
        parameters = {one.name: one for one in others if one.opcode == "parameter"}
        total = 0.0
        for number in range(len(fusion.operands)):
            (parameter,) = [one for one in parameters.values() if one.rest.startswith(f"{number})")]
            users = [one for one in (*others, root) if parameter.name in one.operands]
            if any(user is not root and user.name not in pieces for user in users):
                total += self._read_by_fusion(name, fusion, called, number)
        if root.opcode == "tuple":
            for shape, operand in zip(fusion.shapes, root.operands, strict=True):
                if operand not in pieces and operand not in parameters and self._counts(shape.in_main_memory):
                    total += shape.bytes
        return total

    def _read_by_fusion(self, name: str, fusion: Instruction, called: str, number: int) -> float:
        """What a fusion reads of its operand of this number."""
        whole = self._read(name, fusion.operands[number])
        return min(whole, self._read_of_parameter(called, number, whole)) if whole else 0.0

    def _read_of_parameter(self, name: str, number: int, whole: float) -> float:
        """What a fused computation reads of its parameter of this number."""
        for instruction in self.program.computations[name].instructions:
            if instruction.opcode == "parameter" and re.match(rf"{number}\)", instruction.rest):
                return self._read_by_users(name, instruction.name, whole)
        return whole

    def _read_by_users(self, name: str, value: str, whole: float) -> float:
        total = 0.0
        for user in self.program.computations[name].instructions:
            for place, operand in enumerate(user.operands):
                if operand != value:
                    continue
                if user.opcode in _PARTS and place == 0:
                    total += sum(shape.bytes for shape in user.shapes)
                elif user.opcode == "dynamic-update-slice" and place == 0:
                    continue  # in place
                elif user.opcode in _RENAMES:
                    total += self._read_by_users(name, user.name, whole)
                elif user.opcode == "fusion":
                    total += self._read_of_parameter(attribute(user, "calls"), place, whole)
                else:
                    return whole
        return min(total, whole)

    def _written_by_root(self, name: str, whole: float) -> float:
        """What a fused computation writes: of an array that it updates in place only the update."""
        computation = self.program.computations[name]
        root = computation.instructions[-1]
        while root.opcode in _RENAMES and root.operands[0] in computation.by_name:
            root = computation.by_name[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            update = computation.by_name.get(root.operands[1])
            return sum(shape.bytes for shape in update.shapes) if update is not None else whole
        if root.opcode == "fusion":
            return self._written_by_root(attribute(root, "calls"), whole)
        return whole
