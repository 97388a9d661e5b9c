"""What the text of a compiled program says: its collectives with loops counted by their trips, and its largest buffers.

`jax.stages.Compiled.cost_analysis` counts the body of a loop once, and no collectives. The text (`Compiled.as_text`)
has everything, in a form that TPU, GPU and CPU programs share; this module reads the part of it that planning needs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmeureka_jax.planning.replica_groups import devices_together, mesh_axes_of
from mmeureka_jax.planning.source_names import SourceNames

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0}  # bytes of a number, where the name does not say it in bits
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"n":"?(\d+)"?\}')
_OTHER_MEMORY = re.compile(r"S\((?!0\))\d+\)")  # a memory space that is not the device's main memory
FIRST_PIECE = "async-collective-start"
_COUNTED_LOOP = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=(LT|GT|LE|GE)")
# Not every line that starts with a brace: the metadata of a Pallas kernel goes over several.
_END = re.compile(r"\}(, execution_thread=.*)?\s*$")
# What makes no buffer of its own: names for parts of others, and the second half of an asynchronous operation.
NO_BUFFER = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "constant", "after-all",
    "optimization-barrier", "copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done",
    "async-update", "copy-start", "async-start", "slice-start", "slice-done", "add-dependency",
    "partition-id", "replica-id",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """An array of one device in the text of a program.

    Attributes:
        name: element type and dimensions, such as `bf16[28,1,35768,3584]`.
        data_bytes: of its numbers.
        bytes: of its numbers and of the padding of its tiles (TPU).
        in_main_memory: whether it lies in the device's main memory; a TPU program also has arrays in its on-chip one.
    """

    name: str
    data_bytes: int
    bytes: int
    in_main_memory: bool


@dataclass(frozen=True)
class Instruction:
    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    rest: str  # operands and attributes

    @functools.cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])


@dataclass(frozen=True)
class Collective:
    """Collective operations of one kind between the same chips, of one size.

    Attributes:
        axes: mesh axes that the chips of a group lie along; empty where they are no whole axes.
        group: chips that take part together.
        bytes: of the whole array that is gathered, reduced or exchanged, on one chip, each time. An all-gather's is
            what comes out, a reduce-scatter's what goes in.
        count: how often it runs.
        made_by: the function that it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: int
    count: float
    made_by: str

    @property
    def total_bytes(self) -> float:
        return self.bytes * self.count


@dataclass(frozen=True)
class Buffer:
    """An array that a program makes on each chip, and the function that it comes from.

    Attributes:
        count: how many instructions make one of this shape there; they need not live at the same time.
    """

    shape: str
    bytes: int
    count: int
    made_by: str


@dataclass(frozen=True)
class _Computation:
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}


class ProgramText:
    """The text of a compiled program, taken apart."""

    def __init__(self, text: str):
        self.is_tpu = ":T(" in text
        self.sources = SourceNames(text)
        self.computations, self.entry = _computations(text)

    def collectives(
        self, mesh: Mapping[str, int], unknown_trips: Sequence[float] = ()
    ) -> tuple[tuple[Collective, ...], int]:
        """The collectives of one run of the program, those of most bytes first, and the number of loops whose trips are
        not known and not given (their bodies are counted once).

        Of the branches of a conditional, that with most bytes counts. The two halves of an asynchronous operation, and
        the pieces in which a TPU program runs one between others, are one operation.

        Args:
            mesh: sizes of the mesh axes, in the order of the mesh's dimensions.
            unknown_trips: trips of loops whose number is decided while they run: of the outermost such loop, of one
                within it, and so on.
        """
        walk = _Walk(self, tuple(mesh.items()), tuple(unknown_trips))
        counted = walk.of(self.entry, 0)
        found = [dataclasses.replace(one, count=count) for one, count in counted.items()]
        return tuple(sorted(found, key=lambda one: -one.total_bytes)), walk.not_given

    def largest_buffers(self, count: int) -> list[Buffer]:
        """The largest arrays that the program makes, those of one shape and origin together; no arguments."""
        makers: Counter[tuple[Shape, str]] = Counter()
        for name in self._unfused():
            for instruction in self.computations[name].instructions:
                if instruction.opcode in NO_BUFFER:
                    continue
                origin = self.sources.origin(instruction.rest) or instruction.opcode
                for shape in instruction.shapes:
                    if shape.in_main_memory or not self.is_tpu:
                        makers[shape, origin] += 1
        largest = sorted(makers, key=lambda key: (-key[0].bytes, key[0].name, key[1]))[:count]
        return [Buffer(shape.name, shape.bytes, makers[shape, origin], origin) for shape, origin in largest]

    def _unfused(self) -> set[str]:
        """The computations whose instructions have buffers: the entry, and what it calls otherwise than by fusion."""
        found: set[str] = set()
        waiting = [self.entry]
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found.add(name)
            for instruction in self.computations[name].instructions:
                if instruction.opcode in ("while", "conditional", "call"):
                    waiting += called_by(instruction)
        return found

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """How often the body of a loop runs, if that is known when it is compiled: a counter from one constant to
        another."""
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        condition = self.computations[attribute(loop, "condition")]
        root = condition.instructions[-1]
        compared = _COUNTED_LOOP.search(f"{root.opcode}({root.rest}")
        if compared is None and root.opcode == "fusion":
            condition = self.computations[attribute(root, "calls")]
            root = condition.instructions[-1]
            compared = _COUNTED_LOOP.search(f"{root.opcode}({root.rest}")
        if compared is None or compared[3] not in ("LT", "LE"):
            return None
        bound = _constant(condition, compared[2])
        place = re.search(r"index=(\d+)", condition.by_name[compared[1]].rest) if bound is not None else None
        if bound is None or place is None:
            return None
        start = self._initial(self.computations[computation], loop, int(place[1]))
        return bound - start + (compared[3] == "LE")

    def _initial(self, computation: _Computation, loop: Instruction, place: int) -> int:
        """The value that a loop's counter starts from: JAX's loops start from 0 where the text does not have it."""
        carried = computation.by_name.get(loop.operands[0])
        if carried is None or carried.opcode != "tuple" or place >= len(carried.operands):
            return 0
        counter = carried.operands[place]
        while counter in computation.by_name and computation.by_name[counter].opcode in ("copy", "bitcast"):
            counter = computation.by_name[counter].operands[0]
        return _constant(computation, counter) or 0


class _Walk:
    """Adds up the collectives of computations, each weighed by how often it runs."""

    def __init__(self, program: ProgramText, mesh: tuple[tuple[str, int], ...], unknown_trips: tuple[float, ...]):
        self.program = program
        self.mesh = dict(mesh)
        self.unknown_trips = unknown_trips
        self.not_given = 0
        self._known: dict[tuple[str, int], Counter[Collective]] = {}

    def of(self, name: str, depth: int) -> Counter[Collective]:
        """Collective (with a count of 1) -> how often it runs in one run of a computation.

        Args:
            depth: how many loops of unknown trips the computation lies within.
        """
        if (name, depth) not in self._known:
            self._known[name, depth] = self._count(name, depth)
        return self._known[name, depth]

    def _count(self, name: str, depth: int) -> Counter[Collective]:
        total: Counter[Collective] = Counter()
        for instruction in self.program.computations[name].instructions:
            if instruction.opcode == "while":
                _add(total, self._loop(name, instruction, depth))
            elif instruction.opcode == "conditional":
                branches = [self.of(branch, depth) for branch in called_by(instruction)]
                _add(total, max(branches, key=lambda found: sum(one.bytes * n for one, n in found.items())))
            elif instruction.opcode == "fusion":
                total.update(self._fused(instruction))
            elif instruction.opcode in ("call", "async-start"):
                for called in called_by(instruction):
                    _add(total, self.of(called, depth))
            elif one := self._collective(instruction):
                total[one] += 1
        return total

    def _loop(self, name: str, loop: Instruction, depth: int) -> Counter[Collective]:
        body = attribute(loop, "body")
        trips: float | None = self.program.trips(name, loop)
        if trips is None:
            found = self.of(body, depth + 1)
            trips = self.unknown_trips[depth] if depth < len(self.unknown_trips) else 1
            self.not_given += depth >= len(self.unknown_trips)
        else:
            found = self.of(body, depth)
        return Counter({one: count * trips for one, count in found.items()})

    def _fused(self, fusion: Instruction) -> Iterator[Collective]:
        """The collectives that begin in a fusion.

        A TPU program may run a collective piece by piece, in a chain of fusions between which other work is done, or
        with which it is fused; only the first piece counts. Its fusion of an all-reduce with the choice of one part is
        a reduce-scatter.
        """
        called = attribute(fusion, "calls")
        for instruction in self.program.computations[called].instructions:
            one = self._collective(instruction)
            if one is None or (is_piece(instruction) and not fusion.name.startswith(FIRST_PIECE)):
                continue
            if called.startswith("all-reduce-scatter") and one.kind == "all-reduce":
                one = dataclasses.replace(one, kind="reduce-scatter")
            yield one

    def _collective(self, instruction: Instruction) -> Collective | None:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            return None
        groups = devices_together(instruction.rest, math.prod(self.mesh.values()))
        group = max(map(len, groups), default=1)
        if group == 1:  # nothing crosses chips
            return None
        sizes = [shape.data_bytes for shape in instruction.shapes]
        if instruction.opcode in ("all-gather-start", "collective-permute-start"):
            size = max(sizes)  # operands, results and what the halves tell each other
        else:
            size = sum(sizes) * (group if kind == "reduce-scatter" else 1)
        origin = self.program.sources.origin(instruction.rest) or ""
        return Collective(kind, mesh_axes_of(groups, self.mesh), group, size, 1, origin)


def _add(total: Counter[Collective], more: Counter[Collective]) -> None:
    for one, count in more.items():
        total[one] += count


def _computations(text: str) -> tuple[dict[str, _Computation], str]:
    """Computations by name, and the name of the entry."""
    found: dict[str, _Computation] = {}
    entry = ""
    name: str | None = None
    instructions: list[Instruction] = []
    for line in text.splitlines():
        if name is not None and _END.match(line):
            found[name] = _Computation(tuple(instructions))
            name = None
        elif name is None and line.endswith("{") and (head := _COMPUTATION.match(line)):
            name = head[2]
            instructions = []
            if head[1]:
                entry = name
        elif name is not None and (parsed := _INSTRUCTION.match(line)):
            instructions.append(_instruction(parsed[1], parsed[2]))
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    return found, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _end_of_type(text)
    opcode, _, rest = text[end:].lstrip().partition("(")
    return Instruction(name, tuple(_shapes(text[:end])), opcode, rest)


def _end_of_type(text: str) -> int:
    """Where the type at the beginning of an instruction ends; that of a tuple is in parentheses."""
    if not text.startswith("("):
        return text.index(" ")
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"a type without an end: {text[:80]}")


def _shapes(text: str) -> Iterator[Shape]:
    for kind, dimensions, layout in _SHAPE.findall(text):
        sizes = tuple(int(size.removeprefix("<=")) for size in dimensions.split(",") if size)
        yield _shape(kind, sizes, layout)


@functools.lru_cache(maxsize=4096)
def _shape(kind: str, sizes: tuple[int, ...], layout: str) -> Shape:
    width = _WIDTHS.get(kind)
    if width is None:
        width = int(re.findall(r"\d+", kind)[0]) / 8
    name = f"{kind}[{','.join(map(str, sizes))}]"
    data, padded = (math.ceil(math.prod(lengths) * width) for lengths in (sizes, _padded(sizes, layout)))
    return Shape(name, data, padded, _OTHER_MEMORY.search(layout) is None)


def _padded(sizes: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The dimensions with those padded that a tile covers: `{1,0:T(8,128)}` covers the last two in the order of
    memory."""
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if tile is None or not sizes:
        return sizes
    padded = list(sizes)
    minor_first = [int(axis) for axis in order.split(",")]
    for axis, size in zip(minor_first, reversed([int(size) for size in tile[1].split(",")]), strict=False):
        padded[axis] = -(-padded[axis] // size) * size
    return tuple(padded)


def attribute(instruction: Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.rest)
    assert found is not None, f"{instruction.name} has no {name}"
    return found[1]


def called_by(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs."""
    if branches := _BRANCHES.search(instruction.rest):
        return [name.strip().removeprefix("%") for name in branches[1].split(",")]
    return _CALLED.findall(instruction.rest)


def is_piece(instruction: Instruction) -> bool:
    """Whether it is a piece of a collective that runs in a chain of fusions."""
    return "chain_id=" in instruction.rest


def _constant(computation: _Computation, name: str) -> int | None:
    instruction = computation.by_name.get(name)
    if instruction is None or instruction.opcode != "constant":
        return None
    value = re.match(r"(-?\d+)\)", instruction.rest)
    return int(value[1]) if value else None
