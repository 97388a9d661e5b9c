"""JAX as the commands and the Python API use it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.process import cluster


def start_jax(
    args: argparse.Namespace | None = None, mesh: MeshConfig | None = None, folder: str | Path | None = None
) -> None:
    """Sets JAX up before its first use: many processes if asked for, a CPU's devices, and the persistent compilation
    cache.

    Args:
        args: of a command that may run in many processes.
        mesh: how many devices a CPU has, and when a process that is silent counts as lost.
        folder: what the command writes, on the disk of all hosts.
    """
    import jax

    from mmeureka_jax.process.cpu import split_cpu, switch_ynn_off

    switch_ynn_off()
    if mesh is not None:
        split_cpu(mesh.cpu_devices)
    coordinator = getattr(args, "coordinator", None)
    distributed = coordinator or os.environ.get("MMEUREKA_DISTRIBUTED") == "1"
    for name in ("num_processes", "process_id"):
        if not distributed and getattr(args, name, None) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} needs --coordinator HOST:PORT (or MMEUREKA_DISTRIBUTED=1, where JAX finds "
                "the coordinator by itself)"
            )
    if distributed and args is not None and mesh is not None:
        limit = mesh.heartbeat_seconds
        cluster.join(coordinator, args.num_processes, args.process_id, limit=limit, run_dir=str(folder))
    elif distributed:
        jax.distributed.initialize()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        if distributed and folder is not None:  # on the disk of all hosts, since process 0 alone writes it
            cache = Path(folder).absolute().parent / "xla_cache"
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmeureka_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
