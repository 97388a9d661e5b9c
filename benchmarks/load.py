"""Memory of the host while a checkpoint is read onto devices, or written: what it takes on top of the parameters held.

    python -m benchmarks.load --config 3b --layers 8 --cpu-devices 4 --dtype bfloat16

A checkpoint of random bfloat16 weights in several files is written first. Each way then runs in a process of its own,
which reads its resident memory before, and the most that it has had after. On CPU devices the parameters themselves are
in that memory; `beside_mb` is without them, `ratio` what that is of the largest tensor. The compiler's memory and the
libraries' buffers are in it too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import TINY, make_parser, positive, released_config, run_benchmark
from mmeureka_jax.export.convert import convert
from mmeureka_jax.formats.hugging_face import load_params, read_config, save_params, write_checkpoint
from mmeureka_jax.mesh import tree_shardings
from mmeureka_jax.models.families import weight_mappings
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.process.cpu import split_cpu, switch_ynn_off
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

_OPERATIONS = ("load", "load orbax", "save")


def _resident_mb(peak: bool = False) -> float:
    """Resident memory of this process, now or the most since `_forget_peak`. Linux."""
    key = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _run(operation: str, folder: Path, devices: int, dtype: str) -> dict[str, Any]:
    """One way, in this process."""
    switch_ynn_off()
    split_cpu(devices)
    source = folder / ("orbax" if operation == "load orbax" else "hf")
    config = read_config(source)
    policy = Policy(config)
    mesh = jax.make_mesh((1, devices, 1, 1), ("data", "fsdp", "context", "tensor"))
    shardings = tree_shardings(mesh, policy.abstract_params(), policy.param_axes())

    def load() -> Any:
        return jax.block_until_ready(load_params(source, config, shardings, jnp.dtype(dtype)))

    if operation == "save":
        params = load()
    _forget_peak()
    before = _resident_mb()
    start = time.perf_counter()
    if operation == "save":
        save_params(params, config, folder / "saved", dtype=dtype)
    else:
        params = load()
    seconds = time.perf_counter() - start
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
    beside = _resident_mb(peak=True) - before - (0 if operation == "save" else held)
    return {"params_mb": round(held, 1), "beside_mb": round(beside, 1), "seconds": round(seconds, 2)}


def _random_tensors(config: Any) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for mapping in weight_mappings(config):
        for _ in mapping.tensors():
            yield (0.02 * rng.standard_normal(mapping.shape, np.float32)).astype(jnp.bfloat16)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    write_tiny_checkpoint(folder / "tiny", TINY)
    config = read_config(folder / "tiny")
    if args.config is not None:
        config = released_config(args.config, config)
    if args.layers is not None:
        config = replace(config, text=replace(config.text, num_layers=args.layers))
    sizes = [int(np.prod(mapping.shape)) * 2 for mapping in weight_mappings(config) for _ in mapping.tensors()]
    write_checkpoint(
        _random_tensors(config), config, folder / "hf", source=folder / "tiny", dtype=jnp.bfloat16,
        max_shard_bytes=sum(sizes) // 3,
    )  # fmt: skip
    convert(folder / "hf", folder / "orbax")
    largest = max(sizes) / 2**20
    rows = {}
    for operation in _OPERATIONS:
        options = [operation, str(folder), str(args.cpu_devices), args.dtype]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load", "--in-this-process", *options],
            capture_output=True, text=True, env=os.environ, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        row = json.loads(done.stdout.splitlines()[-1])
        rows[operation] = row | {"ratio": round(row["beside_mb"] / largest, 2)}
    files = len(list((folder / "hf").glob("*.safetensors")))
    return {
        "ratio": rows["load"]["ratio"],
        "stored_mb": round(sum(sizes) / 2**20, 1),
        "files": files,
        "largest_tensor_mb": round(largest, 1),
        "rows": rows,
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("load", "Memory of the host while a checkpoint is read or written.")
    parser.set_defaults(cpu_devices=4)
    parser.add_argument("--layers", type=positive, help="of the decoder, instead of all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the parameters")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--in-this-process"]:
        operation, folder, devices, dtype = given[1:]
        print(json.dumps(_run(operation, Path(folder), int(devices), dtype)), flush=True)
        return 0
    return run_benchmark(measure, build_parser(), given)


if __name__ == "__main__":
    sys.exit(main())
