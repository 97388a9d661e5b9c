"""Several processes, one CPU device or two each, joined by jax.distributed over the loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ONE_LAYER, environment

ROOT = Path(__file__).parents[2]
LIMIT = 1500  # seconds until a hang is called a hang


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_together(commands, devices, log_dir):
    """Runs the commands at the same time; when one fails the others, which wait for it, are ended."""
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
    deadline = time.monotonic() + LIMIT
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(codes), "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)


class Runs:
    """Three steps of configs/smoke.yaml, in one process with two devices and in two processes with one."""

    def __init__(self, folder: Path):
        self.folder = folder

    def train(self, name: str, processes: int) -> list[dict[str, float]]:
        """Starts the run, or goes on with it; the rows of its metrics.jsonl."""
        run_dir = self.folder / name
        command = [
            "mmeureka_jax.cli", "train", "configs/smoke.yaml", f"run_dir={run_dir}", "steps=3", "rl.packing=0",
            "rl.micro_batches=1",
            "tracking.progress=false", "reward.workers=1", *ONE_LAYER,
        ]  # fmt: skip
        commands = [command]
        if processes > 1:
            address = f"127.0.0.1:{free_port()}"
            joined = ["--coordinator", address, "--num-processes", processes]
            commands = [[*command, *joined, "--process-id", index] for index in range(processes)]
        run_together(commands, 2 // processes, self.folder)
        return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith("time/")}


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_resume(runs):
    together = runs.train("two", 2)
    alone = runs.train("one", 1)
    assert [row["step"] for row in together] == [row["step"] for row in alone] == [0, 1, 2, 3]
    for mine, expected in zip(together, alone, strict=True):
        mine, expected = without_times(mine), without_times(expected)
        assert mine.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{expected['step']} {name}")
    losses = [row["loss/total"] for row in alone[1:]]
    assert len(set(losses)) == 3 and np.isfinite(losses).all()

    # Stopped after step 2, with groups left in the buffer: step 3 again, bit for bit.
    shutil.rmtree(runs.folder / "two" / "checkpoints" / "3")
    resumed = runs.train("two", 2)
    assert [without_times(row) for row in resumed] == [without_times(row) for row in together]
    assert together[2]["filter/buffer"] > 0
    metadata = json.loads((runs.folder / "two" / "metadata.json").read_text())
    assert metadata["processes"] == 2


@pytest.mark.slow
def test_rewards_stay_with_their_responses_when_hosts_alternate_in_the_mesh(tmp_path):
    port = free_port()
    command = ["tests.collect_on_two_hosts", port]
    run_together([[*command, index, tmp_path / "work", *ONE_LAYER] for index in range(2)], 2, tmp_path)
