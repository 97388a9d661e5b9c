"""Which devices take part in a collective operation together, as the text of a compiled program says it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

# {{0,1},{2,3}}
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d, ]*\}(?:, ?\{[\d, ]*\})*)\}")
# [4,2]<=[2,4]T(1,0): the numbers 0, 1, ... of that shape, transposed, as groups
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# mesh['axis_0'=4,'axis_1'=2] {'axis_0'}: along the axes in the braces; an axis may be a part of one, 'axis_0':(2)4
_MESH = re.compile(
    r"replica_groups=@?\w*mesh\[([^\]]*)\](?:, ?device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?\)?)? ?\{([^}]*)\}"
)


def devices_together(attributes: str, count: int) -> list[tuple[int, ...]]:
    """Groups of devices, numbered as in the mesh, of an instruction with these attributes.

    A collective-permute has pairs of a source and a target; those that form a ring are a group.

    Args:
        count: devices of the program; without groups in the text, all of them are one.
    """
    if listed := _LISTED.search(attributes):
        groups = [tuple(int(number) for number in re.findall(r"\d+", part)) for part in listed[1].split("}")]
        groups = [group for group in groups if group]
        return _rings(groups) if "source_target_pairs" in listed[0] else groups
    if iota := _IOTA.search(attributes):
        numbers = _numbers(iota[3], iota[4])
        return [tuple(group) for group in numbers.reshape(int(iota[1]), int(iota[2])).tolist()]
    if mesh := _MESH.search(attributes):
        return _along_axes(*mesh.groups())
    return [tuple(range(count))]


def _numbers(shape: str, order: str | None) -> np.ndarray:
    sizes = [int(size) for size in shape.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose([int(axis) for axis in order.split(",")]) if order else numbers


def _along_axes(axes: str, shape: str | None, order: str | None, chosen: str) -> list[tuple[int, ...]]:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values())) if shape is None else _numbers(shape, order).reshape(-1)
    # A part of an axis, as `'axis_0':(2)4`, has 2 before it, 4 of its own and the rest behind it.
    parts: list[tuple[int, bool]] = []
    wanted = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen)
    for name, size in sizes.items():
        before = 1
        for _, first, own in sorted((w for w in wanted if w[0] == name and w[1]), key=lambda w: int(w[1])):
            parts += [(int(first) // before, False), (int(own), True)]
            before = int(first) * int(own)
        parts.append((size // before, any(w == (name, "", "") for w in wanted)))
    grid = numbers.reshape([size for size, _ in parts])
    inside = [place for place, (_, is_chosen) in enumerate(parts) if is_chosen]
    outside = [place for place, (_, is_chosen) in enumerate(parts) if not is_chosen]
    members = math.prod(parts[place][0] for place in inside)
    return [tuple(group) for group in grid.transpose(outside + inside).reshape(-1, members).tolist()]


def _rings(pairs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Devices that are connected by pairs of source and target."""
    leader: dict[int, int] = {}

    def find(device: int) -> int:
        while leader.setdefault(device, device) != device:
            device = leader[device]
        return device

    for source, target in pairs:
        leader[find(source)] = find(target)
    rings: dict[int, list[int]] = {}
    for device in sorted(leader):
        rings.setdefault(find(device), []).append(device)
    return [tuple(ring) for ring in rings.values()]


def mesh_axes_of(groups: Sequence[tuple[int, ...]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes that groups of devices lie along; empty if they are no whole axes.

    Args:
        mesh: sizes of the axes, in the order in which the mesh numbers its devices.
    """
    largest = max(groups, key=len, default=())
    if len(largest) < 2 or max(largest) >= math.prod(mesh.values()):
        return ()
    places = np.unravel_index(np.asarray(largest), tuple(mesh.values()))
    varying = tuple(axis for axis, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1)
    return varying if math.prod(mesh[axis] for axis in varying) == len(largest) else ()
