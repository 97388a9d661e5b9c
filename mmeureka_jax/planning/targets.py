"""The devices that `mmeureka plan --on TARGET` names. None of them has to be there: compilers need a description.

v5e:4x4        a slice of a TPU pod, by chip and topology
2xv5e:16x16    two such slices
h100:8         GPUs: eight are one host, 16 two hosts
cpu:8          the CPU of this machine as so many devices
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.planning.gpu_descriptions import gpu_description
from mmeureka_jax.process.console import stderr_closed
from mmeureka_jax.process.cpu import MAX_CPU_DEVICES, split_cpu, switch_ynn_off
from mmeureka_jax.setup.chips import CHIPS, Chip, chip_named

# Read by libtpu when it is loaded: no machine is asked for its metadata, no TPU is taken, and stderr stays quiet.
_LIBTPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Without a GPU no kernel can be tried, and for some products the default of XLA's own kernels has no tiles that fit:
# products are cuBLAS's, as most are where kernels are tried.
_NO_TRITON = "--xla_gpu_enable_triton_gemm=false"
_TARGET = re.compile(r"(?:(?P<slices>\d{1,4})x)?(?P<kind>[a-z]\w*):(?P<sizes>\d{1,5}(?:x\d{1,5}){0,2})")


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
        name: as the user calls them.
        devices: those of a description can be compiled for; only those of a CPU can run anything.
        memory_bytes: what programs can use of a device's memory.
        chip: None for a CPU.
    """

    name: str
    devices: tuple[jax.Device, ...]
    memory_bytes: int
    chip: Chip | None

    @property
    def kind(self) -> str:
        """The devices in words."""
        return self.chip.title if self.chip is not None else "CPU"


def open_target(name: str) -> Target:
    """The devices of a target. Before the first use of a device in this process, whose own devices become a CPU's.

    Raises:
        UserError: it is no target, or the compiler for it is not installed.
    """
    match = _TARGET.fullmatch(name)
    chip = chip_named(match["kind"]) if match else None
    if match is None or (chip is None and match["kind"] != "cpu"):
        raise UserError(f"--on {name}: not a target; {_choices()}")
    slices = int(match["slices"] or 1)
    sizes = tuple(map(int, match["sizes"].split("x")))
    if min(slices, *sizes) < 1:
        raise UserError(f"--on {name}: every size must be at least 1")
    switch_ynn_off()
    jax.config.update("jax_platforms", "cpu")
    if chip is None:
        return _cpu(name, slices, sizes)
    devices = (
        _tpu_devices(name, chip, slices, sizes) if chip.platform == "tpu" else _gpu_devices(name, chip, slices, sizes)
    )
    return Target(name, devices, chip.memory_bytes, chip)


def _choices() -> str:
    tpus, gpus = (", ".join(chip.name for chip in CHIPS if chip.platform == kind) for kind in ("tpu", "gpu"))
    return (
        f"give a TPU slice ({tpus}) with its topology, such as v5e:4x4, v5p:2x2x2 or 2xv6e:16x16; GPUs ({gpus}), such "
        "as h100:8; or cpu:8"
    )


def _cpu(name: str, slices: int, sizes: tuple[int, ...]) -> Target:
    """The CPU as so many devices, each with its share of the machine's memory."""
    (count,) = sizes if len(sizes) == 1 and slices == 1 else (0,)
    if not 1 <= count <= MAX_CPU_DEVICES:
        raise UserError(f"--on {name}: a CPU is cpu:N, with 1 to {MAX_CPU_DEVICES} devices")
    split_cpu(count)
    devices = tuple(jax.devices("cpu"))
    if len(devices) < count:
        raise UserError(f"--on {name}: this process has started JAX with {len(devices)} devices; plan in a new process")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Target(name, devices[:count], memory // count, None)


def _tpu_devices(name: str, chip: Chip, slices: int, sizes: tuple[int, ...]) -> tuple[jax.Device, ...]:
    if len(sizes) != chip.torus_dimensions:
        example = "4x4" if chip.torus_dimensions == 2 else "2x2x2"
        raise UserError(
            f"--on {name}: a topology of {chip.title} has {chip.torus_dimensions} sizes, such as {chip.name}:{example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--on {name} needs libtpu, the TPU compiler, which is not installed: pip install "
            f"'jax[tpu]=={jax.__version__}'"
        )
    options: dict[str, object] = {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device, as on Cloud TPU
    if math.prod(sizes) == 1 or (chip.torus_dimensions == 2 and sizes in ((2, 4), (4, 2))):
        options["chips_per_host_bounds"] = (*sizes, 1)[
            :3
        ]  # such a slice is one host; larger ones have 2 x 2 chips each
    if slices > 1:
        options["num_slices"] = slices
    os.environ.update(_LIBTPU_VARIABLES)
    topology = f"{chip.name}:{'x'.join(map(str, sizes))}"
    try:
        with stderr_closed():
            jax.devices("cpu")
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--on {name}: libtpu does not know this topology ({brief(error)})") from None
    return tuple(described.devices)


def _gpu_devices(name: str, chip: Chip, slices: int, sizes: tuple[int, ...]) -> tuple[jax.Device, ...]:
    (count,) = sizes if len(sizes) == 1 and slices == 1 else (0,)
    a_host = min(count, chip.chips_per_host)
    if not count or count % a_host:
        raise UserError(
            f"--on {name}: GPUs are {chip.name}:N, up to {chip.chips_per_host} on one host or a multiple of that"
        )
    install = (
        f"--on {name} needs JAX's CUDA plugin, which compiles without a GPU too: pip install --no-deps "
        f"jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}"
    )
    if _NO_TRITON not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_NO_TRITON}".strip()
    topology = f"1x{count // a_host}x{a_host}"  # slices x hosts x GPUs of a host
    try:
        with stderr_closed():
            jax.devices("cpu")
            described = topologies.get_topology_desc(
                platform="cuda", topology_name=topology, topology=topology, target_config=gpu_description(chip)
            )
    except NotImplementedError:
        raise UserError(install) from None
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--on {name}: the CUDA plugin does not take this description ({brief(error)})") from None
    return tuple(described.devices)
