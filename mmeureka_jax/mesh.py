"""The device mesh, the one table of sharding rules, and what lays out arrays and programs by it.

Arrays name their dimensions with logical axes ("batch", "embed", "heads", ...); `AXIS_RULES` maps those to the mesh
axes `data`, `fsdp`, `context` and `tensor`. Nothing else in the project mentions a mesh axis by name.

The text decoder is sharded over `fsdp` (its embed dimension) and `tensor` (heads, MLP, vocabulary). The vision tower
is small and usually frozen, and its MLP width (3420 in the released checkpoints) divides by few mesh sizes, so it is
sharded over `fsdp` only.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
    "seq": None,
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
        UserError: the sizes do not multiply to the number of devices, `context` x `tensor` does not fit into a host, or
            the devices are not in `slices` slices of one size.
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
    per_host = Counter(device.process_index for device in devices)
    whole = math.gcd(*per_host.values())  # groups of this size and its divisors fit into every host
    choices = ", ".join(str(size) for size in range(1, whole + 1) if whole % size == 0)
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh: ({', '.join(AXES)}) = {tuple(getattr(config, a) for a in AXES)} does not divide the "
            f"{len(devices)} devices that JAX sees; choose sizes whose product is {len(devices)}, or -1 for one of "
            f"them; mesh.tensor can be {choices}"
        )
    if whole % (sizes["context"] * sizes["tensor"]):
        raise UserError(
            f"mesh.tensor = {sizes['tensor']} spreads a prompt over several hosts, which each load prompts of their "
            f"own; of the {whole} devices of a host it can take {choices}"
        )
    if sizes["data"] % config.slices:
        raise UserError(
            f"mesh.data = {sizes['data']} does not divide over mesh.slices = {config.slices}; set mesh.data to "
            f"{config.slices} or a multiple of it"
        )
    shape = sizes["data"] // config.slices, sizes["fsdp"], sizes["context"], sizes["tensor"]
    arranged = [_arranged(part, shape) for part in _slices(devices, config.slices)]
    return Mesh(np.concatenate(arranged), AXES, axis_types=(AxisType.Auto,) * len(AXES))


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
    """The devices in an array of this shape, in the order that suits the network best, if the devices that share rows
    then stay on one host; else host by host, where neighbours in a group are neighbours in the network too."""
    try:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError, AssertionError) as error:  # a network that JAX does not know
        logger.debug("devices are taken host by host: %s", error)
    else:
        if _hosts_have_own_rows(arranged):
            return arranged
    order = sorted(range(len(devices)), key=lambda i: devices[i].process_index)  # stable: within a host as they come
    return np.asarray([devices[i] for i in order]).reshape(shape)


def _hosts_have_own_rows(devices: np.ndarray) -> bool:
    """Whether the devices that share rows of a batch (those along `context` and `tensor`) belong to one host,
    everywhere."""
    groups = devices.reshape(-1, math.prod(devices.shape[2:]))
    return all(len({device.process_index for device in group}) == 1 for group in groups)


def partition_spec(*names: str | None) -> PartitionSpec:
    """The mesh axes of an array whose dimensions have these logical names (None: not sharded)."""
    return PartitionSpec(*(AXIS_RULES[name] if name is not None else None for name in names))


def sharding(mesh: Mesh, *names: str | None) -> NamedSharding:
    return NamedSharding(mesh, partition_spec(*names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out as `AXIS_RULES` say. Outside `jax.set_mesh` x is returned as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(*names))


def gathered(*names: str | None) -> tuple[str | None, ...]:
    """The names of an array's dimensions without those that `fsdp` splits: how a device holds it whole."""
    return tuple(None if name is None or AXIS_RULES[name] == "fsdp" else name for name in names)


def over_fsdp(name: str | None) -> bool:
    """Whether `fsdp` splits a dimension of this logical name."""
    axes = AXIS_RULES[name] if name is not None else None
    return "fsdp" in ((axes,) if isinstance(axes, str) else axes or ())


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
    axes = AXIS_RULES[name] or ()
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


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
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    beside: Any = ()

    def lower(self) -> jax.stages.Lowered:
        """The program for the compiler, under `jax.set_mesh`. What is compiled here, a later call does not compile."""
        return self.function.lower(*self.arguments)

    def outputs(self) -> Any:
        """Shapes of what the function returns, without shardings."""
        return self.function.eval_shape(*self.arguments)


def abstract(x: Any, *names: str | None) -> jax.ShapeDtypeStruct:
    """The shape of an array that `constrain` lays out, under `jax.set_mesh`."""
    mesh = jax.sharding.get_mesh()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=None if mesh.empty else sharding(mesh, *names))


def bytes_of_device(tree: Any) -> int:
    """Bytes that arrays, or their shapes with shardings, take on each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


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
