"""A run's log as a newcomer reads it in a file: where it runs, what it waits for, its steps, and how it ends."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from pathlib import Path

import jax
import pytest
from helpers.commands import ONE_LAYER, mmeureka

from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.training import job

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_reward_workers")]

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
OVERRIDES = """
    steps=2 sampler.max_new_tokens=8 sampler.batch_prompts=8 rl.group_size=2 rl.prompts_per_update=8 rl.micro_batches=1
    rl.packing=0 rl.filter.enabled=false sampler.compile_ahead=false
    data.train=tfds:shapes/dots@train[:16] data.validation=tfds:shapes/dots@test[:8]
    tracking.validate_every=1 tracking.tensorboard=false tracking.rollouts_every=0 reward.workers=1
""".split()


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[str, list[str]]:
    """The lines of stderr of a new run of two steps, of its last step once more, and of the finished run."""
    run_dir = tmp_path_factory.mktemp("log") / "run"

    def train(*overrides: str) -> list[str]:
        with contextlib.redirect_stderr(io.StringIO()) as log, contextlib.redirect_stdout(log):
            assert mmeureka("train", SMOKE, f"run_dir={run_dir}", *OVERRIDES, *ONE_LAYER, *overrides) == 0
        return log.getvalue().replace(str(run_dir), "RUN").splitlines()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "open_policy", functools.partial(open_policy, devices=jax.devices()[:1]))
        new = train()
        shutil.rmtree(run_dir / "checkpoints" / "2")
        return {"new": new, "resumed": train("tracking.progress=false"), "finished": train()}


def places(log: list[str], *beginnings: str) -> list[int]:
    """The place of the first line that begins so, of each."""
    return [next(i for i, line in enumerate(log) if line.startswith(beginning)) for beginning in beginnings]


def test_a_new_run_says_what_it_does_in_order(logs):
    order = places(
        logs["new"],
        "mmeureka_jax 0.",
        "  devices     1 x cpu",
        "  mesh        data 1 x fsdp 1 x tensor 1",
        "  model       qwen2_5_vl, RUN/model",
        "  parameters  0.1",
        "  run folder  RUN",
        "starting 1 reward worker ...",
        "check shapes/dots@train[:16]: 0 of 16 rows",
        "  data        tfds:shapes/dots@train[:16], 16 of 16 rows can be used, with pictures",
        "  validation  tfds:shapes/dots@test[:8], 8 of 8 rows",
        "loading the policy from RUN/model ...",
        "  start       a new run of 2 steps",
        "validate: 0 of 8 problems",
        "answering 8 prompts of up to 96 tokens, which compiles the sampler for them ...",
        "before training: val 0.",
        "step 1/2: sampling (first time: compiles its programs; later steps are faster) ...",
        "sampling for 8 prompts of up to 96 tokens, which compiles the sampler for them ...",
        "step 1/2: updating (first time",
        "compiling the update for rows of 96 + 16 tokens, width 1 of up to 1 (each compiles once) ...",
        "step 1/2  acc 0.",
        "step 1/2: saving a checkpoint ...",
        "step 2/2  acc 0.",
        "finishing checkpoint 2 in RUN/checkpoints ...",
        "writing the report ...",
        "report: RUN/report.html",
    )
    assert order == sorted(order)
    assert all(line.isascii() for line in logs["new"])


def test_a_line_for_each_step_says_the_time_left(logs):
    (first,) = [line for line in logs["new"] if line.startswith("step 1/2  ")]
    assert "  len " in first and "  loss " in first and "of it compiling)  left " in first
    (last,) = [line for line in logs["new"] if line.startswith("step 2/2  ")]
    assert "left" not in last


def test_a_resumed_run_says_from_where(logs):
    resumed = logs["resumed"]
    order = places(
        resumed,
        "checking tfds:shapes/dots@train[:16], 16 rows ...",  # without bars
        "reading checkpoint 1 ...",
        "  start       from step 1 of 2, the newest checkpoint",
        "step 2/2  acc 0.",
        "report: RUN/report.html",
    )
    assert order == sorted(order)
    assert not any(line.startswith(("loading the policy", "step 1/2", "before training")) for line in resumed)


def test_a_finished_run_says_that_nothing_happens(logs):
    finished = logs["finished"]
    places(finished, "  start       already finished, 2 of 2 steps: nothing is left to train; see RUN/report.html")
    assert not any("step 2/2" in line or "checkpoint 2 in" in line for line in finished)
