"""What `mmeureka plan` says of a run's memory against the run itself, on CPU devices.

    python -m benchmarks.plan_on_cpu --devices 4

For each of three configs (all parameters trained, next to a reference policy; adapters; adapters with tensor
parallelism) it plans the run, which leaves its compiled programs in a cache, and then trains two steps with that cache.

`held_mb` is the most that lay on a device at a time while it trained: the buffers of the arrays that JAX knows of,
looked at every few milliseconds. A buffer counts once. Who reads an array shard by shard, as the writer of checkpoints
does, leaves further arrays behind, one for each shard, which lie in the buffers of the whole: array by array the train
state would count twice from the first checkpoint on.

`planned_mb` is the same by the plan: arguments, outputs and what is resident, of the program for which these are most.
What programs compute with is in neither, and cannot be looked at in a running CPU process. It is part of the
compiled program, and the run executes those that the plan measured: `compiled_anew` lists the functions on the plan's
list that the run did not find in the cache.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import positive, significant

SMOKE = (
    "steps=2", "data.max_image_windows=1", "data.validation=null", "sampler.compile_ahead=true",
    "sampler.batch_prompts=4", "rl.group_size=2", "rl.prompts_per_rollout=8", "rl.prompts_per_update=8",
    "rl.filter.if_none_kept=keep_all", "model.random.hidden_size=128", "model.random.num_layers=1",
    "model.random.vision_depth=1", "model.random.vision_full_attention_blocks=[0]",
)  # fmt: skip
LORA = ("model.lora.rank=8", "model.lora.alpha=16")
CONFIGS = {
    "all parameters, reference policy": ("mesh.data=1", "mesh.fsdp=-1", "rl.kl_coefficient=0.1"),
    "adapters": (*LORA, "mesh.data=-1", "mesh.fsdp=1"),
    "adapters, tensor 2": (*LORA, "mesh.data=1", "mesh.fsdp=-1", "mesh.tensor=2"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=positive, default=4)
    parser.add_argument("--part", choices=("plan", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--config", choices=CONFIGS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.part is not None:
        part = {"plan": plan_of, "train": train}[args.part]
        print(json.dumps(part(args.config, args.devices, args.folder)))
        return 0
    rows = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            planned = in_process("plan", name, args.devices, folder)
            ran = in_process("train", name, args.devices, folder)
        rows.append(
            {
                "config": name,
                "held_mb": significant(ran["held"] / 1e6),
                "planned_mb": significant(planned["held"] / 1e6),
                "ratio": significant(planned["held"] / ran["held"], 3),
                "by": planned["by"],
                "programs": len(planned["functions"]),
                "compiled_anew": sorted(set(ran["compiled"]) & set(planned["functions"])),
            }
        )
    print(json.dumps({"benchmark": "plan_on_cpu", "devices": args.devices, "rows": rows}))
    return 0


def in_process(part: str, name: str, devices: int, folder: str) -> dict[str, Any]:
    """A part in a process of its own: a run has to start JAX, and finds in memory what was compiled before."""
    options = [f"--part={part}", f"--config={name}", f"--devices={devices}", f"--folder={folder}"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
    command = [sys.executable, "-m", "benchmarks.plan_on_cpu", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def config_of(name: str, devices: int, folder: Path) -> Any:
    from mmeureka_jax.config.load import load_config

    overrides = [*SMOKE, *CONFIGS[name], f"mesh.cpu_devices={devices}", f"run_dir={folder / 'run'}"]
    return load_config("configs/smoke.yaml", overrides)


def plan_of(name: str, devices: int, folder: Path) -> dict[str, Any]:
    from mmeureka_jax.commands.plan import cache_in
    from mmeureka_jax.planning.memory import PlannedProgram
    from mmeureka_jax.planning.plan import make_plan
    from mmeureka_jax.planning.targets import open_target

    target = open_target(f"cpu:{devices}")
    with cache_in(str(folder / "cache")):
        plan = make_plan(config_of(name, devices, folder), target, which="all", quiet=True)

    def held(program: PlannedProgram) -> int:
        return program.memory.sum - program.memory.temporaries + program.resident_bytes

    most = max(plan.programs, key=held)
    functions = [f"jit_{program.program.function.__name__}" for program in plan.programs]
    return {"held": held(most), "by": most.name, "functions": functions}


def train(name: str, devices: int, folder: Path) -> dict[str, Any]:
    from mmeureka_jax.commands.jax_setup import start_jax
    from mmeureka_jax.training import rl

    config = config_of(name, devices, folder)
    start_jax(mesh=config.mesh, folder=config.run_dir)
    compiled: list[str] = []
    compiler = logging.getLogger("jax._src.compiler")
    compiler.setLevel(logging.DEBUG)
    compiler.propagate = False

    class Misses(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "CACHE MISS" in record.getMessage() and isinstance(record.args, tuple):
                compiled.append(str(record.args[0]))

    compiler.addHandler(Misses())
    watch = Watch()
    watch.start()
    rl.train(config)
    watch.over.set()
    watch.join()
    return {"held": watch.most, "compiled": compiled}


class Watch(threading.Thread):
    """Looks at what the first device holds every few milliseconds.

    Attributes:
        most: bytes, the most that were there.
        over: ends it.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.003):
            self.most = max(self.most, held_bytes())


def held_bytes() -> int:
    """Bytes of the buffers that arrays have on the first device."""
    import jax

    device = jax.devices()[0]
    sizes: dict[int, int] = {}  # by address
    for array in jax.live_arrays():
        if device not in array.sharding.device_set or array.is_deleted():
            continue
        try:
            part = next(shard.data for shard in array.addressable_shards if shard.device == device)
            sizes[part.unsafe_buffer_pointer()] = part.nbytes
        except RuntimeError:  # a program has taken it in the meantime
            continue
    return sum(sizes.values())


if __name__ == "__main__":
    sys.exit(main())
