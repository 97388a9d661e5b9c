"""How long collective operations take on the network between chips.

Within a TPU slice chips are a torus (or, where a dimension is too short to close, a grid), and a collective along a
mesh axis uses the links of the dimensions that the axis lies along. GPUs of a host meet at a switch. Between slices,
and between hosts of GPUs, each chip has its share of a slower network.

The costs are those of bandwidth-optimal algorithms (Austin et al., How to Scale Your Model, 2025, "Sharded Matrices and
How to Multiply Them", https://jax-ml.github.io/scaling-book/sharding): with V bytes gathered among k chips whose links
carry W bytes a second into each of them, an all-gather or a reduce-scatter takes V (k - 1) / k / W, an all-reduce twice
that, an all-to-all on a ring a quarter of the whole array's bytes / W; and about a microsecond for each hop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from mmeureka_jax.planning.hlo import Collective
from mmeureka_jax.setup.chips import Chip

HOP_SECONDS = 1e-6


@dataclass(frozen=True)
class Route:
    """The network between the chips of a group.

    Attributes:
        members: chips.
        domains: slices (TPU) or hosts (GPU) that they lie in.
        bandwidth: bytes a second that come into a chip from others of its domain.
        hops: on the way between the two farthest of a domain.
        is_switch: every two chips of a domain are neighbours.
        network: a chip's share of the network between domains, bytes a second.
    """

    members: int
    domains: int
    bandwidth: float
    hops: int
    is_switch: bool
    network: float

    def seconds(self, kind: str, size: float) -> float:
        """
        Args:
            kind: of the collective, as `hlo.KINDS` has it.
            size: its bytes, as `Collective.bytes` has them.
        """
        inside = self.members // self.domains
        if kind == "collective-permute":
            slowest = self.network if self.domains > 1 else self.bandwidth
            return size / slowest + HOP_SECONDS
        if kind == "all-to-all":
            share = 1 - 1 / inside if self.is_switch else inside / 4
            within = size * share / self.bandwidth if inside > 1 else 0.0
            across = size * (1 - 1 / self.domains) / self.network
        else:
            passes = 2 if kind == "all-reduce" else 1
            within = passes * size * (1 - 1 / inside) / self.bandwidth if inside > 1 else 0.0
            # Each chip of a domain carries its part of what crosses to the others.
            across = passes * size * (1 - 1 / self.domains) / (self.network * inside)
        steps = self.hops * (2 if kind == "all-reduce" else 1) + (self.domains > 1)
        return within + (across if self.domains > 1 else 0.0) + steps * HOP_SECONDS


class Network:
    """The routes between the chips of a mesh."""

    def __init__(self, chip: Chip, mesh: Mesh):
        self.chip = chip
        self.axes = mesh.axis_names
        self.devices = mesh.devices
        self._places = np.array([self._place(device) for device in mesh.devices.flat])
        self._places = self._places.reshape(*mesh.devices.shape, -1)
        self._routes: dict[tuple[str, ...], Route] = {}

    def _place(self, device: object) -> tuple[int, ...]:
        """(slice or host, coordinates within it)."""
        if self.chip.torus_dimensions:
            coordinates = tuple(getattr(device, "coords", ()))[: self.chip.torus_dimensions]
            return getattr(device, "slice_index", 0) or 0, *coordinates
        number = int(getattr(device, "id", 0))
        return number // self.chip.chips_per_host, number % self.chip.chips_per_host

    def route(self, axes: Sequence[str]) -> Route:
        """The network of a collective along some mesh axes."""
        names = tuple(axes)
        if names not in self._routes:
            index = tuple(slice(None) if axis in names else 0 for axis in self.axes)
            members = self._places[index].reshape(-1, self._places.shape[-1])
            self._routes[names] = self._route_of(members)
        return self._routes[names]

    def _route_of(self, members: np.ndarray) -> Route:
        chip = self.chip
        domains = len(np.unique(members[:, 0]))
        count = len(members)
        if not chip.torus_dimensions:
            return Route(count, domains, chip.interconnect_bandwidth, 1, True, chip.network_bandwidth)
        bandwidth = 0.0
        hops = 0
        for dimension in range(1, members.shape[1]):
            along = np.unique(members[:, dimension])
            if len(along) == 1:
                continue
            whole = len(np.unique(self._places[..., dimension]))
            stride = int(np.diff(along).min())  # between the members lie chips of other groups, on the same links
            is_ring = len(along) == whole and whole % chip.ring_from == 0
            bandwidth += chip.link_bandwidth * (2 if is_ring else 1) / stride
            hops += len(along) // 2 if is_ring else (len(along) - 1) * stride
        return Route(count, domains, bandwidth or chip.link_bandwidth, hops, False, chip.network_bandwidth)

    def line(self, members: int) -> Route:
        """Chips that lie along no whole mesh axis: taken as a line of neighbours in one domain."""
        return Route(
            members,
            1,
            self.chip.link_bandwidth,
            members - 1,
            not self.chip.torus_dimensions,
            self.chip.network_bandwidth,
        )

    def seconds(self, collective: Collective, size: float | None = None) -> float:
        """Of one operation.

        Args:
            size: its bytes; None: those that it has.
        """
        route = self.route(collective.axes) if collective.axes else self.line(collective.group)
        return route.seconds(collective.kind, collective.bytes if size is None else size)

    def total_seconds(self, collectives: Iterable[Collective]) -> float:
        """Of all of them, one after the other."""
        return math.fsum(one.count * self.seconds(one) for one in collectives)
