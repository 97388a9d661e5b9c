"""Whole runs that are small: their config, what they leave behind, and on how many devices."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmeureka_jax.data import check
from mmeureka_jax.prm import search_job
from mmeureka_jax.rewards import workers
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.training import job

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"

# The guessing policy answers a few of these problems right now and then, so that the filter has something to decide.
OVERRIDES = """
    steps=3 model.random=null sampler.max_new_tokens=6 sampler.batch_prompts=8
    rl.group_size=4 rl.prompts_per_rollout=4 rl.prompts_per_update=2 rl.micro_batches=1 rl.packing=0
    rl.filter.lower=0.1 rl.filter.upper=0.9 rl.filter.max_empty_rounds=20
    data.train=tfds:shapes/dots@train[:20] data.validation=tfds:shapes/dots@test[:4]
    checkpoint.keep=3 tracking.validate_every=2 tracking.progress=false tracking.tensorboard=false reward.workers=1
    optimizer.learning_rate=1e-4
""".split()


def use_devices(monkeypatch, count: int) -> None:
    for module in (job, search_job):
        monkeypatch.setattr(module, "open_policy", functools.partial(open_policy, devices=jax.devices()[:count]))


@contextlib.contextmanager
def same_reward_workers() -> Iterator[None]:
    """The runs that this process makes in the block have answers scored by the same processes, where each would start
    its own (3 s of CPU time)."""
    with contextlib.ExitStack() as stack:
        workers_of_a_run = workers.RewardWorkers
        started = functools.cache(lambda *given: stack.enter_context(workers_of_a_run(*given)))
        for module in (check, workers):
            shared = mock.patch.object(module, "RewardWorkers", lambda *given: contextlib.nullcontext(started(*given)))
            stack.enter_context(shared)
        yield


def without_times(run_dir: Path) -> list[dict[str, float]]:
    return [{name: x for name, x in row.items() if not name.startswith("time/")} for row in read_metrics(run_dir)]


def progress_of(run_dir: Path, step: int) -> dict:
    return json.loads((run_dir / "checkpoints" / str(step) / "progress" / "metadata").read_text())


def state_of(run_dir: Path, step: int) -> dict:
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(run_dir / "checkpoints" / str(step) / "state"))
