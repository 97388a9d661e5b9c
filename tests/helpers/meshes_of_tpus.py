"""Meshes of TPU slices that are not there, by context and tensor size; run by test_meshes_of_tpus.py.

    python -m tests.helpers.meshes_of_tpus v6e:4x4 v5p:4x4x4 ...

Prints one JSON object. It is a process of its own because libtpu is loaded into it, as in compile_for_tpu.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

from jax.experimental import topologies  # noqa: E402

from mmeureka_jax.config.schema import MeshConfig  # noqa: E402
from mmeureka_jax.errors import UserError  # noqa: E402
from mmeureka_jax.mesh import make_mesh, row_shares, sampler_mesh  # noqa: E402


def hops(one: Any, other: Any) -> int:
    return sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))


def describe(devices: list[Any], context: int, tensor: int) -> dict[str, Any]:
    try:
        mesh = make_mesh(MeshConfig(context=context, tensor=tensor), devices)
    except UserError as error:
        return {"refused": str(error)}
    groups = mesh.devices.reshape(-1, tensor)
    nearest = [
        min(hops(one, other) for other in group if other is not one) for group in groups for one in group if tensor > 1
    ]
    shares = row_shares(mesh).hosts
    return {
        "shape": list(mesh.devices.shape),
        "devices": len(set(mesh.devices.flat)),
        "hosts": len({device.process_index for device in devices}),
        "shares": len(shares),
        "hosts_of_a_share": sorted({len(hosts) for hosts in shares}),
        "shares_of_sampler": len(row_shares(sampler_mesh(mesh)).hosts),
        "hosts_of_a_group": max(len({device.process_index for device in group}) for group in groups),
        "hops_to_the_next": max(nearest, default=0),
    }


def sizes(chips: int) -> Iterator[tuple[int, int]]:
    """Every power of two for context and tensor, and one that is none."""
    powers = [2**power for power in range(chips.bit_length())]
    yield 1, 3
    yield from ((context, tensor) for context in powers for tensor in powers if context * tensor <= chips)


if __name__ == "__main__":
    slices = {name: topologies.get_topology_desc(platform="tpu", topology_name=name).devices for name in sys.argv[1:]}
    made = {name: {f"{c} {t}": describe(list(d), c, t) for c, t in sizes(len(d))} for name, d in slices.items()}
    print(json.dumps(made))
