"""A CPU as JAX uses it: its devices, its threads, and the kernels that are switched off."""

from __future__ import annotations

import os

import jax

from mmeureka_jax.errors import UserError

# The YNNPACK kernels of XLA:CPU, on by default, sometimes compute wrong gradients in jax 0.10.2, 0.11.0 and 0.11.2:
# with a tensor axis of 2 in one update of three, on one device in some first steps of a process; in 0.12.0 never.
NO_YNN = "--xla_cpu_experimental_ynn_fusion_type="

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # a matrix product uses one thread
MAX_CPU_DEVICES = 1024


def ynn_is_safe() -> bool:
    """Whether this version of JAX, or XLA_FLAGS, avoids those kernels."""
    version = tuple(map(int, jax.__version__.split(".")[:2]))
    return version >= (0, 12) or NO_YNN in os.environ.get("XLA_FLAGS", "")


def switch_ynn_off() -> None:
    """Adds the flag that avoids them to XLA_FLAGS; call it before the first use of a device, when XLA reads its
    flags."""
    if not ynn_is_safe():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_YNN}".strip()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(devices: int) -> None:
    """Makes a CPU this many devices, which share its cores; call it before the first use of one. No effect elsewhere.

    Most operations of a small model are too small to divide among threads. With a device for each core they run in
    parallel, and matrix products need no threads either. A number set from outside (XLA_FLAGS, JAX_NUM_CPU_DEVICES)
    stays.

    Raises:
        UserError: not a positive number.
    """
    if not 1 <= devices <= MAX_CPU_DEVICES:
        raise UserError(f"mesh.cpu_devices is {devices}; it has to be 1 or more, and at most {MAX_CPU_DEVICES}")
    flags = os.environ.get("XLA_FLAGS", "")
    if devices == 1 or "host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        if jax.local_device_count() != devices:
            raise UserError(
                f"mesh.cpu_devices is {devices}, but this process has already started JAX with "
                f"{jax.local_device_count()}; train in a new process, before anything else (in a notebook: restart it)"
            ) from None
    if devices >= cores():
        os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()
