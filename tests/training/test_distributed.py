"""Several processes, one CPU device or two each, joined by jax.distributed over the loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ONE_LAYER, environment, free_port
from helpers.guessing import write_stepping_checkpoint

from mmeureka_jax.prm.growth import write_grown

ROOT = Path(__file__).parents[2]
LIMIT = 1500  # seconds until a hang is called a hang


def start_together(commands, devices, log_dir):
    """The processes and their logs."""
    logs = [log_dir / f"process_{index}.log" for index in range(len(commands))]
    processes = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *map(str, command)],
                    cwd=ROOT, env=environment(devices), stdout=output, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    return processes, logs


def wait_while(condition, processes):
    """Returns when `condition` no longer holds; what is left of the processes if that takes too long is ended."""
    deadline = time.monotonic() + LIMIT
    while condition():
        if time.monotonic() > deadline:
            end_all(processes)
            pytest.fail("a hang")
        time.sleep(0.05)


def end_all(processes):
    for process in processes:
        process.kill()
        process.wait()


def run_together(commands, devices, log_dir):
    """Runs the commands at the same time; when one fails the others, which wait for it, are ended."""
    processes, logs = start_together(commands, devices, log_dir)
    try:

        def all_is_well():
            codes = [process.poll() for process in processes]
            return None in codes and not any(codes)

        wait_while(all_is_well, processes)
    finally:
        end_all(processes)
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(codes), "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)


class Runs:
    """Three steps of configs/smoke.yaml, in one process with two devices and in two processes with one."""

    def __init__(self, folder: Path):
        self.folder = folder

    def commands(self, name: str, processes: int, *overrides: str, job: tuple[str, ...] = ("train",)) -> list[list]:
        command = [
            "mmeureka_jax.cli", *job, "configs/smoke.yaml", f"run_dir={self.folder / name}", "steps=3",
            "rl.packing=0", "rl.micro_batches=1", "checkpoint.every_steps=1", "checkpoint.keep=3",
            "tracking.progress=false", "reward.workers=1", "sampler.compile_ahead=false", *ONE_LAYER, *overrides,
        ]  # fmt: skip
        if processes == 1:
            return [command]
        joined = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", processes]
        return [[*command, *joined, "--process-id", index] for index in range(processes)]

    def train(
        self, name: str, processes: int, *overrides: str, job: tuple[str, ...] = ("train",)
    ) -> list[dict[str, float]]:
        """Starts the run, or continues it; the rows of its metrics.jsonl."""
        run_together(self.commands(name, processes, *overrides, job=job), 2 // processes, self.folder)
        return self.rows(name)

    def rows(self, name: str) -> list[dict[str, float]]:
        path = self.folder / name / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith("time/")}


@pytest.fixture(scope="module")
def together(runs):
    return runs.train("two", 2)


@pytest.mark.slow
def test_two_processes_train_as_one_does(runs, together):
    check_equal(together, runs.train("one", 1))
    metadata = json.loads((runs.folder / "two" / "metadata.json").read_text())
    assert metadata["processes"] == 2


@pytest.mark.slow
def test_processes_that_share_all_rows_train_as_one_does(runs):
    """`mesh.tensor` over the processes."""
    sizes = "mesh.tensor=2", "steps=1", "tracking.validate_every=1", "sampler.shrink=0", "sampler.max_new_tokens=8"
    check_equal(runs.train("two_tensor", 2, *sizes), runs.train("one_tensor", 1, *sizes), steps=1)


@pytest.mark.slow
def test_a_process_reward_model_of_two_processes_is_that_of_one(runs):
    """Seven processes are scored in batches of four: hosts fill up the last one."""
    text = "count them<prm>\n\nthere are many<prm>"
    rows = [
        {"id": f"dots-{('easy', 'hard')[i % 2]}-train-{i:06d}", "text": text, "labels": [0.5, i / 7]} for i in range(7)
    ]
    (runs.folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = str(runs.folder / "labels.jsonl")
    settings = [
        f"prm.labels={labels}", f"prm.validation={labels}", "data.validation=null", "steps=2", "prm.paths_per_step=4",
        "prm.packing=0", "prm.max_process_tokens=32", "prm.validation_batch=4", "tracking.validate_every=1",
    ]  # fmt: skip
    alone = runs.train("prm_one", 1, *settings, job=("prm", "train"))
    together = runs.train("prm_two", 2, *settings, job=("prm", "train"))
    assert [row["step"] for row in together] == [0, 1, 2]
    for mine, expected in zip(together, alone, strict=True):
        assert mine.keys() == expected.keys()
        for name, value in without_times(expected).items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{expected['step']} {name}")


@pytest.mark.slow
def test_process_rewards_of_two_processes_are_those_of_one(runs):
    """Each process has read half of the problems, and all of them score all groups."""
    write_stepping_checkpoint(runs.folder / "policy", family="qwen2_5_vl")
    write_grown(runs.folder / "policy", runs.folder / "process_model")
    settings = [
        "model.random=null", f"model.checkpoint={runs.folder / 'policy'}", "steps=2", "rl.advantage=grpo",
        f"reward.process.model={runs.folder / 'process_model'}", "reward.process.batch_size=6", "data.validation=null",
        "sampler.shrink=0", "sampler.max_new_tokens=12",
    ]  # fmt: skip
    together = runs.train("scored_two", 2, *settings)
    assert [row["step"] for row in together] == [1, 2] and all(0 < row["process/score"] < 1 for row in together)
    for mine, expected in zip(together, runs.train("scored_one", 1, *settings), strict=True):
        assert mine.keys() == expected.keys()
        for name, value in without_times(expected).items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{expected['step']} {name}")


def check_equal(together, alone, steps=3):
    assert [row["step"] for row in together] == [row["step"] for row in alone] == list(range(steps + 1))
    for mine, expected in zip(together, alone, strict=True):
        mine = without_times(mine)
        expected = without_times(expected)
        assert mine.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{expected['step']} {name}")
    losses = [row["loss/total"] for row in alone[1:]]
    assert len(set(losses)) == steps and np.isfinite(losses).all()


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_continues(runs, together):
    """Bit for bit, with groups left in the buffer."""
    processes, logs = start_together(runs.commands("killed", 2), 1, runs.folder)
    try:
        wait_while(lambda: len(runs.rows("killed")) < 2 and processes[0].poll() is None, processes)
        processes[1].kill()
        assert processes[0].wait(timeout=35) == 75, logs[0].read_text()
    finally:
        end_all(processes)
    said = logs[0].read_text()
    assert "mmeureka: process 1 of 2 is lost: " in said.splitlines()[-1] and "start the same command again" in said
    assert "Traceback" not in said and "Check failure" not in said
    assert len(runs.rows("killed")) < 4
    assert together[2]["filter/buffer"] > 0
    resumed = runs.train("killed", 2)
    assert [without_times(row) for row in resumed] == [without_times(row) for row in together]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, ["sampler.batch_prompts=4"]),
        # Tensor and context over hosts; all load the same three prompts, and two of them draw half of the responses.
        (4, ["sampler.batch_prompts=3", "sampler.max_new_tokens=8", "mesh.tensor=2", "mesh.context=2"]),
    ],
    ids=["two hosts", "tensor over hosts"],
)
def test_groups_on_alternating_hosts_are_those_of_one_device(tmp_path, processes, settings):
    command = ["tests.helpers.collect_on_hosts", free_port()]
    settings = [tmp_path / "work", *settings, *ONE_LAYER]
    run_together([[*command, index, processes, *settings] for index in range(processes)], 4 // processes, tmp_path)
