"""The device mesh, the one table of sharding rules, and what lays out arrays and programs by it.

Arrays name their dimensions with logical axes ("batch", "embed", "heads", ...); `AXIS_RULES` maps those to the mesh
axes `data`, `fsdp`, `context` and `tensor`. Nothing else in the project mentions a mesh axis by name.

The text decoder is sharded over `fsdp` (its embed dimension) and `tensor` (heads, MLP, vocabulary). The vision tower
is small and usually frozen, and its MLP width (3420 in the released checkpoints) divides by few mesh sizes, so it is
sharded over `fsdp` only.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.process.cpu import NO_YNN, ynn_is_safe

logger = logging.getLogger(__name__)

AXES = ("data", "fsdp", "context", "tensor")

AXIS_RULES: Mapping[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "seq": "context",
    "residual_seq": ("context", "tensor"),  # between layers, where each place is computed by itself
    "act_embed": None,
    "act_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
    # decoding with weights that stay split over fsdp (see models/decoding.py)
    "shared_rows": "data",  # rows of all devices along fsdp, on each of them
    "split_mlp": ("tensor", "fsdp"),
    "split_vocab": ("tensor", "fsdp"),
    # parameters
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "vision_embed": "fsdp",
    "vision_mlp": None,
    "norm": None,
    "patch": None,
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, context, tensor) mesh over all devices.

    Raises:
        UserError: the sizes do not multiply to the number of devices, a host would hold a part of two blocks of rows
            (see `row_shares`), or the devices are not in `slices` slices of one size.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "cpu" and not ynn_is_safe():
        logger.warning("this JAX gets gradients wrong on CPU now and then; set XLA_FLAGS=%s", NO_YNN)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise UserError(f"mesh: sizes must be positive and at most one -1, got {sizes}")
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh: ({', '.join(AXES)}) = {tuple(getattr(config, a) for a in AXES)} does not divide the "
            f"{len(devices)} devices that JAX sees; choose sizes whose product is {len(devices)}, or -1 for one of "
            "them"
        )
    if sizes["data"] % config.slices:
        raise UserError(
            f"mesh.data = {sizes['data']} does not divide over mesh.slices = {config.slices}; set mesh.data to "
            f"{config.slices} or a multiple of it"
        )
    shape = sizes["data"] // config.slices, sizes["fsdp"], sizes["context"], sizes["tensor"]
    arranged = [_arranged(part, shape) for part in _slices(devices, config.slices)]
    mesh = Mesh(np.concatenate(arranged), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    if _count_shares(mesh) == 0:
        hosts = Counter(device.process_index for device in devices)
        raise UserError(
            f"mesh: the {sizes['context'] * sizes['tensor']} devices of a block of rows (context x tensor) and the "
            f"{min(hosts.values())} devices of a host do not divide one another, so that a host would hold a part of "
            "two blocks; choose sizes that do"
        )
    return mesh


def sampler_mesh(mesh: Mesh) -> Mesh:
    """The mesh that the sampler runs under: the same devices in the same order, with `context` folded into `fsdp`.

    A decode step has one place of each row, which cannot be split; the rows go over those devices instead. A program
    under this mesh takes arrays of the other one as they lie.
    """
    sizes = mesh.shape
    if sizes["context"] == 1:
        return mesh
    shape = sizes["data"], sizes["fsdp"] * sizes["context"], 1, sizes["tensor"]
    return Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


@dataclass(frozen=True)
class RowShares:
    """How the rows of a batch are divided among hosts.

    Attributes:
        hosts: of each share, in the order of its rows, the processes whose devices hold it. They load the same rows.
        shards: the shards of the batch dimension that each share consists of, ascending.
    """

    hosts: tuple[tuple[int, ...], ...]
    shards: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        return len(self.hosts)

    @property
    def index(self) -> int:
        """This process's share."""
        return next(i for i, hosts in enumerate(self.hosts) if jax.process_index() in hosts)

    @property
    def sharing(self) -> tuple[int, ...]:
        """The processes that have this process's share, itself among them."""
        return self.hosts[self.index]

    @property
    def rank(self) -> int:
        """The place of this process in `sharing`."""
        return self.sharing.index(jax.process_index())

    def merged(self, count: int) -> RowShares:
        """`count` shares, each of as many neighbours of these. `count` divides the number of these."""
        size = self.count // count
        parts = range(0, self.count, size)
        return RowShares(
            tuple(sum(self.hosts[i : i + size], ()) for i in parts),
            tuple(sum(self.shards[i : i + size], ()) for i in parts),
        )

    def order(self, rows: int) -> np.ndarray:
        """The place of every row in an array over the mesh: share after share, [rows]."""
        of_shard = np.arange(rows).reshape(sum(map(len, self.shards)), -1)
        return np.concatenate([of_shard[list(shards)].ravel() for shards in self.shards])


ONE_HOST = RowShares(hosts=((0,),), shards=((0,),))  # which has all rows, in order


@functools.lru_cache(maxsize=16)
def row_shares(mesh: Mesh) -> RowShares:
    """Which rows of an array that is spread over the batch dimension each host holds, and so loads.

    Hosts have the same share if their devices hold the same rows, which are then split over `context` or `tensor`
    between them. Shares are in the order of their first shard.
    """
    by_host: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(batch_divisor(mesh), -1)):
        for device in devices:
            by_host.setdefault(device.process_index, set()).add(shard)
    by_shards: dict[tuple[int, ...], list[int]] = {}
    for host, shards in sorted(by_host.items()):
        by_shards.setdefault(tuple(sorted(shards)), []).append(host)
    shares = sorted(by_shards.items())
    return RowShares(tuple(tuple(hosts) for _, hosts in shares), tuple(shards for shards, _ in shares))


def _count_shares(mesh: Mesh) -> int:
    """Into how many shares hosts divide the rows; 0 if, in updates or in the sampler, two hosts hold some rows in
    common but not all, or one holds more rows than another."""
    for one in (mesh, sampler_mesh(mesh)):
        shards = row_shares(one).shards
        if len(set(map(len, shards))) > 1 or sum(map(len, shards)) > batch_divisor(one):
            return 0
    return row_shares(mesh).count


def in_words(mesh: Mesh) -> str:
    """The sizes of the axes, such as data 2 x fsdp 4 x tensor 1; context only where it splits something."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if axis != "context" or size > 1)


def _slices(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
    """The devices of each slice: of each `slice_index`, or where there are more of those than slices, of as many
    neighbours. Devices without one (CPUs) are divided by host, or within the only host evenly.

    Raises:
        UserError: they are not in `count` slices of one size.
    """
    is_tpu = devices[0].platform == "tpu"
    islands: dict[int, list[jax.Device]] = {}
    for device in devices:  # a TPU that is only described may have no slice_index
        index = getattr(device, "slice_index", 0 if is_tpu else device.process_index)
        islands.setdefault(index, []).append(device)
    if count == 1 and not is_tpu:
        return [list(devices)]
    in_order = [device for _, island in sorted(islands.items()) for device in island]
    size, rest = divmod(len(devices), count)
    fits = len(islands) == count if is_tpu else len(islands) == 1 or len(islands) % count == 0
    if rest or not fits or len({len(island) for island in islands.values()}) > 1:
        sizes = ", ".join(str(len(island)) for _, island in sorted(islands.items()))
        raise UserError(
            f"mesh.slices = {count}, but the {len(devices)} devices are in {len(islands)} slices, of {sizes}; set "
            "mesh.slices to their number, and mesh.data to it or a multiple of it"
        )
    return [in_order[start : start + size] for start in range(0, len(devices), size)]


def _arranged(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """The devices in an array of this shape, in the order that suits the network best, if hosts then share no more rows
    than they must; else host by host, where neighbours in a group are neighbours in the network too."""
    order = sorted(range(len(devices)), key=lambda i: devices[i].process_index)  # stable: within a host as they come
    by_host = np.asarray([devices[i] for i in order]).reshape(shape)
    try:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError, AssertionError) as error:  # a network that JAX does not know
        logger.debug("devices are taken host by host: %s", error)
        return by_host
    shares, most = (_count_shares(Mesh(x, AXES)) for x in (arranged, by_host))
    return arranged if shares >= most else by_host


def partition_spec(*names: str | None) -> PartitionSpec:
    """The mesh axes of an array whose dimensions have these logical names (None: not sharded)."""
    return PartitionSpec(*(AXIS_RULES[name] if name is not None else None for name in names))


def sharding(mesh: Mesh, *names: str | None) -> NamedSharding:
    return NamedSharding(mesh, partition_spec(*names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out as `AXIS_RULES` say. Outside `jax.set_mesh` x is returned as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = partition_spec(*names)
    if mesh.manual_axes:  # inside of `map_shards`, which has split some already
        spec = PartitionSpec(
            *(tuple(axis for axis in _mesh_axes(name) if axis not in mesh.manual_axes) for name in names)
        )
    return jax.lax.with_sharding_constraint(x, spec)


def _mesh_axes(name: str | None) -> tuple[str, ...]:
    """The mesh axes of a logical axis."""
    axes = None if name is None else AXIS_RULES[name]
    return (axes,) if isinstance(axes, str) else axes or ()


def gathered(*names: str | None) -> tuple[str | None, ...]:
    """The names of an array's dimensions without those that `fsdp` splits: how a device holds it whole."""
    return tuple(None if name is None or AXIS_RULES[name] == "fsdp" else name for name in names)


def over_fsdp(name: str | None) -> bool:
    """Whether `fsdp` splits a dimension of this logical name."""
    return "fsdp" in _mesh_axes(name)


def platform() -> str:
    """The platform of the devices under `jax.set_mesh`, which may be those of a described topology; outside, JAX's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_shards() -> int:
    """Number of shards of the batch dimension under `jax.set_mesh`; 1 outside."""
    return shard_count("batch")


def shard_count(name: str) -> int:
    """Number of parts that a dimension of this logical name is cut into under `jax.set_mesh`; 1 outside."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _parts(mesh, name)


def _parts(mesh: Mesh | AbstractMesh, name: str) -> int:
    return math.prod(mesh.shape[axis] for axis in _mesh_axes(name) if axis not in mesh.manual_axes)


def map_shards(
    function: Callable[..., Any],
    over: Sequence[str],
    in_names: Sequence[tuple[str | None, ...]],
    out_names: Any,
) -> Callable[..., Any]:
    """`function` on every shard of some logical axes by itself, under `jax.set_mesh`. The compiler still lays out the
    other axes; in there `constrain` and `shard_count` know only those.

    Args:
        over: the logical axes.
        in_names: for each argument (or tree of arrays that are alike) the names of its dimensions. Those at the end and
            those not in `over` can be left out or None. An argument without any of `over` is given whole; its gradient
            is the sum over the shards.
        out_names: such names for each result, each of which is sharded by all of `over`; those of a single one as such.
    """
    axes = [axis for name in over for axis in _mesh_axes(name)]

    def spec(names: tuple[str | None, ...]) -> PartitionSpec:
        return PartitionSpec(*(AXIS_RULES[name] if name is not None and name in over else None for name in names))

    single = not out_names or not isinstance(out_names[0], tuple)
    return jax.shard_map(
        function,
        in_specs=tuple(map(spec, in_names)),
        out_specs=spec(out_names) if single else tuple(map(spec, out_names)),
        axis_names=set(axes),
        check_vma=False,
    )


def sum_over_shards(x: jax.Array, name: str, dimension: int) -> jax.Array:
    """The sum of what all shards of a logical axis have, inside of `map_shards`: each keeps its own part of
    `dimension`."""
    return jax.lax.psum_scatter(x, _mesh_axes(name), scatter_dimension=dimension, tiled=True)


def take_in_shards(x: jax.Array, index: jax.Array, *names: str | None) -> jax.Array:
    """Rows of x [D * r, ...] by `index` [D * m], where the D shards of the batch dimension each choose among their own
    r rows and nothing crosses devices. `names` are the logical axes of x's other dimensions."""
    shards = batch_shards()
    if shards == 1:
        return jnp.take(x, index, axis=0, mode="clip")
    parts = constrain(x.reshape(shards, -1, *x.shape[1:]), "batch", None, *names)
    taken = jax.vmap(lambda rows, chosen: jnp.take(rows, chosen, axis=0, mode="clip"))(parts, index.reshape(shards, -1))
    return constrain(taken, "batch", None, *names).reshape(-1, *x.shape[1:])


@dataclass(frozen=True)
class Program:
    """A jitted function, and arguments of the shapes that it is compiled for.

    Attributes:
        name: what it does and for which sizes; no other program of a run has this name.
        function: what `jax.jit` returned.
        arguments: its arguments. Of arrays only shapes and shardings count: they may be `jax.ShapeDtypeStruct`.
        beside: arrays that lie on the devices while it runs and are none of its arguments, as those. The train state
            and a reference policy, which always do, are left out.
        mesh: the mesh that it runs under, where that is not the run's.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    beside: Any = ()
    mesh: Mesh | None = None

    def lower(self) -> jax.stages.Lowered:
        """The program for the compiler, under `jax.set_mesh`. What is compiled here, a later call does not compile."""
        if self.mesh is None:
            return self.function.lower(*self.arguments)
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments)

    def outputs(self) -> Any:
        """Shapes of what the function returns, without shardings."""
        return self.function.eval_shape(*self.arguments)


def abstract(x: Any, *names: str | None) -> jax.ShapeDtypeStruct:
    """The shape of an array that `constrain` lays out, under `jax.set_mesh`."""
    mesh = jax.sharding.get_mesh()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=None if mesh.empty else sharding(mesh, *names))


def bytes_of_device(tree: Any) -> int:
    """Bytes that arrays, or their shapes, take on each device. One without a sharding is whole on each."""

    def of_leaf(x: Any) -> int:
        sharding = getattr(x, "sharding", None)
        return math.prod(x.shape if sharding is None else sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(map(of_leaf, jax.tree.leaves(tree)))


def batch_divisor(mesh: Mesh) -> int:
    """Number of shards of the batch dimension; every global batch size must be a multiple of it."""
    return _parts(mesh, "batch")


def tree_shardings(mesh: Mesh, abstract: Any, axes: Any) -> Any:
    """NamedShardings for a parameter tree.

    Args:
        abstract: tree of arrays or ShapeDtypeStructs.
        axes: tree of the same form whose leaves are tuples of logical names.

    Raises:
        UserError: a dimension does not divide by its mesh axes; every such tensor is listed.
    """
    problems: list[str] = []

    def leaf(path: tuple, value: Any, names: tuple[str | None, ...]) -> NamedSharding:
        spec = partition_spec(*names)
        for size, axis in zip(value.shape, spec, strict=True):
            parts = int(np.prod([mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ())]))
            if size % parts:
                name = "/".join(str(key.key) for key in path)
                problems.append(f"  {name} {tuple(value.shape)}: {size} does not divide by {axis} = {parts}")
        return NamedSharding(mesh, spec)

    result = jax.tree_util.tree_map_with_path(leaf, abstract, axes)
    if problems:
        raise UserError("mesh: these parameters cannot be sharded over it:\n" + "\n".join(problems))
    return result


def to_global(mesh: Mesh, tree: Any) -> Any:
    """Device arrays from this host's rows: every leaf [rows, ...] is sharded over the batch axes, hosts one after the
    other."""

    def leaf(x: np.ndarray) -> jax.Array:
        spec = sharding(mesh, "batch", *(None,) * (x.ndim - 1))
        return jax.make_array_from_process_local_data(spec, x)

    return jax.tree.map(leaf, tree)
