"""How XLA's GPU compiler is told which GPU to compile for, where there is none: its `GpuTargetConfigProto`, as text.

The figures are those that CUDA reports of these GPUs, as openxla/xla keeps them in
`xla/backends/gpu/target_config/specs/` (h100_sxm, h200, a100_sxm_80). Those files describe more (the rates of every
unit), which only the compiler's cost model reads and which its releases name differently; memory does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmeureka_jax.setup.chips import Chip


@dataclass(frozen=True)
class GpuCores:
    """The part of a description that `Chip` does not have.

    Attributes:
        capability: compute capability, the major version.
        cores: streaming multiprocessors.
        units: float32 units of each.
        clock_ghz: boost clock.
        shared_memory: bytes of a multiprocessor.
        shared_memory_of_block: bytes that a block may ask for.
        cache: bytes of the second level.
    """

    capability: int
    cores: int
    units: int
    clock_ghz: float
    shared_memory: int
    shared_memory_of_block: int
    cache: int


_HOPPER = GpuCores(9, 132, 128, 1.98, 233472, 232448, 52428800)
_AMPERE = GpuCores(8, 108, 64, 1.41, 167936, 166912, 41943040)
GPU_CORES = {"a100": _AMPERE, "h100": _HOPPER, "h200": _HOPPER}


def gpu_description(chip: Chip) -> str:
    """The text that the compiler reads, for a chip of `GPU_CORES`."""
    gpu = GPU_CORES[chip.name]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {chip.memory_bytes}
  memory_bandwidth: {int(chip.memory_bandwidth)}
  l2_cache_size: {gpu.cache}
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_memory_of_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{chip.device_kinds[0]}"
"""
