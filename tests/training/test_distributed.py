"""Several processes, one CPU device or two each, joined by jax.distributed over the loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.collect_on_hosts import write_expected
from helpers.commands import ONE_LAYER, environment, free_port, mmeureka, write_rows
from helpers.guessing import write_stepping_checkpoint
from helpers.small_runs import use_devices

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
    """Runs of configs/smoke.yaml, in one process with two devices and in two processes with one."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Each process reward model has the policy's tokenizer, with the marker.
        write_stepping_checkpoint(folder / "policy", family="qwen2_5_vl", layers=1)
        write_grown(folder / "policy", folder / "process_model")
        text = "count them<prm>\n\nthere are many<prm>"
        rows = [
            {"id": f"dots-{('easy', 'hard')[i % 2]}-train-{i:06d}", "text": text, "labels": [0.5, i / 7]}
            for i in range(7)
        ]
        labels = write_rows(folder / "labels.jsonl", rows)
        self.jobs = {
            # Each process has read half of the problems, and all of them score the steps of all groups.
            "scored": [
                "train", "steps=3", "model.random=null", f"model.checkpoint={folder / 'policy'}",
                f"reward.process.model={folder / 'process_model'}", "reward.process.batch_size=6",
                "sampler.max_new_tokens=12",
            ],
            "tensor": [
                "train", "steps=1", "mesh.tensor=2", "tracking.validate_every=1", "sampler.shrink=0",
                "sampler.max_new_tokens=12", *ONE_LAYER,
            ],
            # Seven processes are scored in batches of four: hosts fill up the last one.
            "prm": [
                "prm train", "steps=2", f"prm.labels={labels}", f"prm.validation={labels}", "data.validation=null",
                "prm.paths_per_step=4", "prm.packing=0", "prm.max_process_tokens=32", "prm.validation_batch=4",
                "tracking.validate_every=1", *ONE_LAYER,
            ],
            # Each process draws from the state of one of two open trees, and judges its rollouts.
            "search": [
                "prm search", "model.random=null", f"model.checkpoint={folder / 'policy'}",
                "data.train=tfds:shapes/dots@train[:5]", "data.validation=null", "prm.trees=2",
                "prm.search.rollouts=4", "prm.search.max_searches=2", "sampler.max_new_tokens=24", "sampler.shrink=0",
            ],
        }  # fmt: skip

    def command(self, job: str, name: str) -> list[str]:
        command, *overrides = self.jobs[job]
        return [
            *command.split(), "configs/smoke.yaml", f"run_dir={self.folder / name}", "rl.packing=0",
            "rl.micro_batches=1", "checkpoint.every_steps=1", "checkpoint.keep=3", "tracking.progress=false",
            "reward.workers=1", "sampler.compile_ahead=false", *overrides,
        ]  # fmt: skip

    def rows(self, name: str) -> list[dict[str, float]]:
        path = self.folder / name / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def joined():
    """What commands of two processes add, each its own."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [["--coordinator", coordinator, "--num-processes", "2", "--process-id", str(index)] for index in range(2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


@dataclass
class Killed:
    """What is left of a run whose second process was killed once a checkpoint was there."""

    code: int
    said: str
    rows: list[dict[str, float]]


@pytest.fixture(scope="module")
def killed(runs):
    commands = [["mmeureka_jax.cli", *runs.command("scored", "killed"), *options] for options in joined()]
    processes, logs = start_together(commands, 1, runs.folder)
    try:
        saved = runs.folder / "killed" / "checkpoints" / "1"
        wait_while(lambda: not saved.is_dir() and processes[0].poll() is None, processes)
        processes[1].kill()
        code = processes[0].wait(timeout=35)
    finally:
        end_all(processes)
    return Killed(code, logs[0].read_text(), runs.rows("killed"))


@pytest.fixture(scope="module")
def together(runs, killed):
    """All jobs, in the same two processes: the run that was killed goes on, and the others follow."""
    jobs = [runs.command("scored", "killed"), *(runs.command(job, f"{job}_two") for job in runs.jobs)]
    (runs.folder / "jobs.json").write_text(json.dumps(jobs))
    command = ["tests.helpers.commands_on_hosts", runs.folder / "jobs.json"]
    run_together([[*command, *options] for options in joined()], 1, runs.folder)


@pytest.fixture
def alone(runs, shared_reward_workers, monkeypatch):
    """Does a job in this process, on two devices. Returns the rows of its metrics.jsonl."""
    use_devices(monkeypatch, 2)
    monkeypatch.chdir(ROOT)

    def run(job):
        assert mmeureka(*runs.command(job, f"{job}_one")) == 0
        return runs.rows(f"{job}_one")

    return run


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def check_equal(together, alone, steps):
    assert [row["step"] for row in together] == [row["step"] for row in alone] == list(range(steps + 1))
    for mine, expected in zip(together, alone, strict=True):
        mine = without_times(mine)
        expected = without_times(expected)
        assert mine.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{expected['step']} {name}")


def check_losses(rows):
    losses = [row["loss/total"] for row in rows[1:]]
    assert len(set(losses)) == len(losses) and np.isfinite(losses).all()


@pytest.mark.slow
def test_two_processes_train_as_one_does(runs, together, alone):
    """With process rewards."""
    rows = runs.rows("scored_two")
    check_equal(rows, alone("scored"), steps=3)
    check_losses(rows)
    assert all(0 < row["process/score"] < 1 for row in rows[1:])
    metadata = json.loads((runs.folder / "scored_two" / "metadata.json").read_text())
    assert metadata["processes"] == 2


@pytest.mark.slow
def test_processes_that_share_all_rows_train_as_one_does(runs, together, alone):
    """`mesh.tensor` over the processes."""
    rows = runs.rows("tensor_two")
    check_equal(rows, alone("tensor"), steps=1)
    check_losses(rows)


@pytest.mark.slow
def test_a_process_reward_model_of_two_processes_is_that_of_one(runs, together, alone):
    check_equal(runs.rows("prm_two"), alone("prm"), steps=2)


@pytest.mark.slow
def test_two_processes_find_the_trees_of_one(runs, together, alone):
    alone("search")
    files = [runs.folder / name / "trees.jsonl" for name in ("search_two", "search_one")]
    trees = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert trees[0] == trees[1]
    assert len(trees[0]) == 5 and any(tree["root"]["children"] for tree in trees[0])


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_continues(runs, killed, together):
    """Bit for bit, with groups left in the buffer."""
    assert killed.code == 75, killed.said
    last = killed.said.splitlines()[-1]
    assert "mmeureka: process 1 of 2 is lost: " in last and "start the same command again" in killed.said
    assert "Traceback" not in killed.said and "Check failure" not in killed.said
    assert 2 <= len(killed.rows) < 4
    whole = [without_times(row) for row in runs.rows("scored_two")]
    assert whole[1]["filter/buffer"] > 0 and whole[2]["filter/buffer"] > 0
    assert [without_times(row) for row in runs.rows("killed")] == whole


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
    write_expected(*settings)
    run_together([[*command, index, processes, *settings] for index in range(processes)], 4 // processes, tmp_path)
