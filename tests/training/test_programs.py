"""The list of a run's programs: what a run needs is on it, in the very shapes."""

from __future__ import annotations

import contextlib

import jax
import pytest
from helpers.commands import ONE_LAYER

from mmeureka_jax.config.load import load_config
from mmeureka_jax.training import rl, sft
from mmeureka_jax.training.job import open_job
from mmeureka_jax.training.programs import run_programs

SIZES = """
    steps=2 sampler.max_new_tokens=64 sampler.batch_prompts=16 rl.group_size=4 rl.prompts_per_rollout=16
    rl.prompts_per_update=16 rl.packing=0.1 rl.filter.enabled=false data.validation=null
    sft.problems_per_step=6 sft.micro_batches=1 sft.packing=0.3 sft.max_response_tokens=64
    data.train=tfds:shapes/dots@train[:64] checkpoint.every_steps=2 reward.workers=1
    tracking.progress=false tracking.tensorboard=false mesh.data=2 mesh.fsdp=2 mesh.tensor=2
""".split()
FUNCTIONS = {"start", "decode", "repack", "whole", "weigh", "add", "apply", "_log_probs", "_values"}
RUNS = {
    "parts, with a reference": (
        rl,
        ["rl.micro_batches=2", "rl.kl_coefficient=0.01", 'optimizer.frozen=["vision"]', "data.prompt_buckets=[64,96]"],
    ),
    "one part, of two groups on four shards, with a critic, and log-probabilities anew": (
        rl,
        ["rl.micro_batches=1", "rl.prompts_per_update=2", "rl.advantage=gae", "rl.loss=ppo_clip", "rl.critic.kind=head",
         "rl.importance_cap=2.0", "optimizer.frozen=[]"],
    ),
    "rows of some tokens": (
        rl,
        ["rl.micro_batches=4", "rl.packing=0.8", "rl.row_tokens=96", "rl.kl_coefficient=0.01"],
    ),
    "imitation": (sft, ['optimizer.frozen=["vision"]']),
}  # fmt: skip


@contextlib.contextmanager
def compiled_functions():
    """The names of the functions that are compiled within the block."""
    names = []

    def listen(event, seconds, fun_name="", **others):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name.removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_compiles_nothing_that_is_not_on_the_list(run, tmp_path, monkeypatch):
    module, overrides = RUNS[run]
    config = load_config("configs/smoke.yaml", [f"run_dir={tmp_path / 'run'}", *SIZES, *ONE_LAYER, *overrides])
    names = []
    after = []

    @contextlib.contextmanager
    def with_programs(config, recipe):
        with open_job(config, recipe) as job:
            programs = run_programs(config, recipe, job.opened, job.learner, job.num_windows)
            names.extend(program.name for program in programs)
            for program in programs:
                program.lower().compile()
            with compiled_functions() as compiled:
                yield job
            functions = FUNCTIONS | {program.function.__name__ for program in programs}
            after.extend(name for name in compiled if name in functions)

    monkeypatch.setattr(module, "open_job", with_programs)
    (rl.train if module is rl else sft.fine_tune)(config)
    assert after == []
    assert len(set(names)) == len(names)
