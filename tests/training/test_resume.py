"""Runs that are killed and started again end as runs that were not: bit for bit, times aside."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.commands import environment
from helpers.guessing import write_guessing_checkpoint

REPOSITORY = Path(__file__).parents[2]

# Some groups are turned away and some wait: the filter is on, and 8 prompts a sampler call do not come out even.
RL = """
    steps=9 sampler.max_new_tokens=6 sampler.batch_prompts=8 rl.prompts_per_rollout=4 rl.prompts_per_update=2
    rl.filter.lower=0.1 rl.filter.upper=0.9 tracking.validate_every=4 tracking.rollouts_every=2
    data.train=tfds:shapes/dots@train[:20] data.validation=tfds:shapes/dots@test[:4] checkpoint.keep=2
""".split()


class Job:
    """One command line, started as often as it takes."""

    def __init__(self, run_dir: Path, command: str, overrides: list[str], checkpoint: Path):
        self.run_dir = run_dir
        self.command = [sys.executable, "-m", "mmeureka_jax.cli", command, "configs/smoke.yaml", *overrides]
        self.command += [f"run_dir={run_dir}", f"model.checkpoint={checkpoint}", "model.random=null"]
        self.command += ["tracking.progress=false", "reward.workers=1"]

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *overrides],
            cwd=REPOSITORY,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self) -> None:
        process = self.start()
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output

    def kill_when(
        self,
        reached: Callable[[], bool],
        *overrides: str,
        delay: float = 0.0,
        number: int = signal.SIGKILL,
    ) -> tuple[int, str]:
        """Starts it, sends the signal `delay` seconds after `reached()` holds, and returns the exit code and the
        output."""
        process = self.start(*overrides)
        try:
            while not reached():
                assert process.poll() is None, f"it ended too soon:\n{process.communicate()[0]}"
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(number)
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        return process.returncode, output

    def last_step(self) -> int:
        lines = self.metrics_lines()
        return json.loads(lines[-1])["step"] if lines else -1

    def metrics_lines(self) -> list[str]:
        path = self.run_dir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def rows(self) -> list[dict[str, float]]:
        """The metrics, times aside."""
        rows = [json.loads(line) for line in self.metrics_lines()]
        return [{name: x for name, x in row.items() if not name.startswith("time/")} for row in rows]

    def is_writing_checkpoint(self) -> bool:
        return any((self.run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp"))

    def checkpoint(self, step: int) -> tuple[dict, dict]:
        """(arrays by path, the rest) of a checkpoint, read by Orbax alone."""
        folder = self.run_dir / "checkpoints" / str(step)
        arrays = {}
        for part in ("state", "groups"):
            if (folder / part).exists():
                leaves = jax.tree_util.tree_leaves_with_path(ocp.StandardCheckpointer().restore(folder / part))
                arrays |= {part + jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        return arrays, json.loads((folder / "progress" / "metadata").read_text())


def assert_equal(run: Job, reference: Job, step: int) -> None:
    assert run.rows() == reference.rows()
    arrays, progress = run.checkpoint(step)
    expected, expected_progress = reference.checkpoint(step)
    assert progress == expected_progress
    assert arrays.keys() == expected.keys()
    for name, x in arrays.items():
        assert x.dtype == expected[name].dtype and x.tobytes() == expected[name].tobytes(), name
    logged, expected_logged = [
        {path.name: path.read_text() for path in sorted((job.run_dir / "rollouts").glob("*.jsonl"))}
        for job in (run, reference)
    ]
    assert logged == expected_logged
    assert [path.name for path in sorted((run.run_dir / "checkpoints").iterdir())] == [
        path.name for path in sorted((reference.run_dir / "checkpoints").iterdir())
    ]


@pytest.fixture
def make_job(tmp_path):
    write_guessing_checkpoint(tmp_path / "policy", layers=1)
    return lambda name: Job(tmp_path / name, "train", RL, tmp_path / "policy")


@pytest.mark.slow
def test_a_run_that_was_stopped_three_times_ends_as_one_that_was_not(make_job):
    """By an interrupt before it had a checkpoint, killed while it wrote one, and by SIGTERM, which saves one."""
    uninterrupted = make_job("uninterrupted")
    uninterrupted.finish()
    rows = uninterrupted.rows()
    assert any(row.get("filter/buffer", 0) > 0 for row in rows), "no groups wait: this run shows nothing"
    assert any(row.get("filter/too_hard", 0) > 0 for row in rows), "no groups turned away: this run shows nothing"
    assert rows[-1]["step"] == 9 and sum(row.get("filter/rounds", 0) for row in rows) * 8 > 3 * 20, "too few epochs"

    moments = random.Random(0)
    job = make_job("stopped")
    code, output = job.kill_when(lambda: job.last_step() >= 0, number=signal.SIGINT)
    assert code == 130 and "Traceback" not in output
    assert "mmeureka: interrupted; the same command continues from the last checkpoint" in output

    # After the validation of step 4 and before that of step 8: the same checkpoint is the best one.
    validated = job.run_dir / "checkpoints" / "4"
    job.kill_when(lambda: validated.is_dir() and job.is_writing_checkpoint(), delay=moments.uniform(0.0, 0.02))
    before = job.last_step()

    rarely = "checkpoint.every_steps=100"
    code, output = job.kill_when(lambda: job.last_step() > before, rarely, number=signal.SIGTERM)
    step = job.last_step()
    assert code == 143 and f"stopped by SIGTERM after step {step}" in output and "Traceback" not in output
    assert before < step < 9 and (job.run_dir / "checkpoints" / str(step)).is_dir()

    job.finish()
    assert_equal(job, uninterrupted, 9)
