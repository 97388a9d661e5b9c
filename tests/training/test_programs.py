"""The list of a run's programs: what a run needs is on it, in the very shapes, and compiled before step 0."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import replace

import jax
import pytest
from helpers.commands import ONE_LAYER
from helpers.releases import write_suite
from helpers.small_runs import use_devices

from mmeureka_jax.config.load import load_config
from mmeureka_jax.sampling import memory
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.setup.chips import CHIPS
from mmeureka_jax.setup.policy import find_checkpoint, open_policy
from mmeureka_jax.training import job, memory_check, rl, sft
from mmeureka_jax.training.learner import Learner
from mmeureka_jax.training.programs import RunPrograms, choose_sampling, compile_programs

SIZES = """
    steps=2 sampler.max_new_tokens=32 sampler.batch_prompts=16 rl.group_size=4 rl.prompts_per_rollout=16
    rl.prompts_per_update=16 rl.packing=0.1 rl.filter.enabled=false tracking.validate_every=0 sampler.shrink=0
    sft.problems_per_step=6 sft.micro_batches=1 sft.packing=0.3 sft.max_response_tokens=32
    data.train=tfds:shapes/dots@train[:64] checkpoint.every_steps=2 reward.workers=1
    tracking.progress=false tracking.tensorboard=false mesh.data=2 mesh.fsdp=2 mesh.tensor=2
""".split()
FUNCTIONS = {
    "start",
    "decode",
    "repack",
    "weights_of",
    "nobody",
    "admit",
    "advance",
    "shrink",
    "whole",
    "weigh",
    "add",
    "apply",
    "_log_probs",
    "_values",
}
RUNS = {
    "parts, with a reference": (
        rl,
        ["rl.micro_batches=2", "rl.kl_coefficient=0.01", 'optimizer.frozen=["vision"]', "data.prompt_buckets=[64,96]",
         "sampler.shrink=0.5", "tracking.validate_every=1"],
    ),
    "one part, of two groups on four shards, with a critic, and log-probabilities anew": (
        rl,
        ["rl.micro_batches=1", "rl.prompts_per_update=2", "rl.advantage=gae", "rl.loss=ppo_clip", "rl.critic.kind=head",
         "rl.importance_cap=2.0", "optimizer.frozen=[]"],
    ),
    "rows of some tokens": (
        rl,
        ["rl.micro_batches=4", "rl.packing=0.8", "rl.row_tokens=48", "rl.kl_coefficient=0.01", "mesh.fsdp=1",
         "mesh.tensor=1"],
    ),
    "imitation, with public benchmarks": (sft, ['optimizer.frozen=["vision"]', "tracking.benchmarks.problems=5"]),
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
def test_a_run_compiles_nothing_that_was_not_compiled_before_step_0(run, tmp_path, monkeypatch):
    module, overrides = RUNS[run]
    settings = [f"run_dir={tmp_path / 'run'}", "sampler.compile_ahead=true", *SIZES, *ONE_LAYER, *overrides]
    if "benchmarks" in run:
        settings += [f"tracking.benchmarks.suite={write_suite(tmp_path)}", f"tracking.benchmarks.files={tmp_path}"]
    listed = []
    before = []

    def compile_and_note(programs, *, show):
        compile_programs(programs, show=show)
        listed.extend(programs)
        before.extend(compiled)

    programs_of_learning = Learner.programs
    lists = []
    monkeypatch.setattr(Learner, "programs", lambda *a, **b: lists.append(1) or programs_of_learning(*a, **b))
    monkeypatch.setattr(memory_check, "device_memory", lambda device: 10**12)
    monkeypatch.setattr(job, "compile_programs", compile_and_note)
    config = load_config("configs/smoke.yaml", settings)
    use_devices(monkeypatch, config.mesh.data * config.mesh.fsdp * config.mesh.tensor)
    with compiled_functions() as compiled:
        (rl.train if module is rl else sft.fine_tune)(config)
    functions = FUNCTIONS | {program.function.__name__ for program in listed}
    assert [name for name in compiled[len(before) :] if name in functions] == []
    assert len({program.name for program in listed}) == len(listed)
    assert len(lists) == 1  # to warn of too little memory, and to compile
    assert listed  # some are found again: an earlier test compiled them


def smoke_run(tmp_path, devices, *overrides):
    """Of the smoke run: config, recipe, policy without weights, and learner."""
    config = load_config("configs/smoke.yaml", [f"run_dir={tmp_path / 'run'}", *ONE_LAYER, *overrides])
    checkpoint = find_checkpoint(config.model, tmp_path)
    opened = open_policy(checkpoint, config.model, config.mesh, devices=jax.devices()[:devices])
    recipe = rl.recipe(config)
    return config, recipe, opened, job.make_learner(config, recipe, opened)


def test_the_programs_of_the_smoke_run(tmp_path):
    """On one device; 48 responses are decoded in batches of six sizes. Seven benchmarks share a queue's programs."""
    run = smoke_run(tmp_path, 1, "tracking.benchmarks={}")
    with jax.set_mesh(run[2].mesh):
        programs = RunPrograms(*run, choose_sampling(*run), image_windows=4)
        names = [program.name for program in programs.all]
    kinds = Counter(re.split(r", (?=prompt)", name)[0] for name in names)
    assert kinds == {
        "initial state": 1, "sums of no part": 1, "gradients": 6, "optimiser": 1,
        "start": 1, "decode": 6, "repack": 5,
        "validation's start": 1, "validation's decode": 1,
        "benchmarks' weights of a queue": 1, "benchmarks' empty queue, rows 8": 1, "benchmarks' admit": 1,
        "benchmarks' advance": 1,
    }  # fmt: skip


def test_a_run_without_programs_to_compile_ahead():
    compile_programs([], show=False)


def test_that_weights_stay_split_is_chosen_and_said_once(tmp_path, monkeypatch, capsys):
    """By the size of rollouts; of validation in a run without them."""
    run = config, recipe, opened, learner = smoke_run(tmp_path, 8)
    resident = learner.resident_bytes(with_reference=False)
    rollouts, validation = (
        memory.rollout_bytes(config.sampler, opened, PromptSizes(prompts, (96,), 0), n) + resident
        for prompts, n in [(recipe.prompts_per_batch, 8), (8, 1)]
    )
    imitation = config, replace(recipe, kind="sft"), opened, learner
    for of, needed in ((run, rollouts), (imitation, validation)):
        for less, expected in ((0, "gathered"), (1, "split")):
            chip = replace(CHIPS[0], memory_bytes=(needed - less) / memory._USABLE)
            monkeypatch.setattr(memory, "chip_of_kind", lambda kind, chip=chip: chip)
            assert choose_sampling(*of).decode_weights == expected
            assert capsys.readouterr().err.count("weights stay split") == less
