"""Sweeps: what a file expands to, what is refused, and that an interrupted one ends as one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from helpers.commands import environment, mmeureka
from helpers.guessing import write_guessing_checkpoint

from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.errors import Terminated, UserError
from mmeureka_jax.files import exclusive
from mmeureka_jax.runs.metadata import write_metadata
from mmeureka_jax.runs.provenance import PROVENANCE_FILE
from mmeureka_jax.training import sweep
from mmeureka_jax.training.sweep import load_sweep, run_sweep, state

CONFIGS = Path(__file__).parents[2] / "configs"
TREE = {
    "config": str(CONFIGS / "smoke.yaml"),
    "seeds": [3, 5],
    "overrides": {"steps": 2, "rl.loss": "cpg"},
    "variants": {"plain": {"rl.loss": "pg"}, "clipped": {}},
    "grid": {"optimizer.learning_rate": [1e-3, 2e-3], "rl.group_size": [4]},
}


def write(folder: Path, tree: dict) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"folder": str(folder / "out"), **tree}, sort_keys=False))
    return path


def test_a_file_is_variants_times_the_grid_times_seeds(tmp_path):
    members = load_sweep(write(tmp_path, TREE)).members
    found = [(m.kind, m.seed, m.config.rl.loss, m.config.optimizer.learning_rate, m.config.steps) for m in members]
    assert found == [
        (f"{name}_learning_rate={rate}_group_size=4", seed, loss, rate, 2)
        for name, loss in (("plain", "pg"), ("clipped", "cpg"))
        for rate in (1e-3, 2e-3)
        for seed in (3, 5)
    ]
    assert all(m.config.seed == m.seed and m.folder == tmp_path / "out" / m.kind / f"seed{m.seed}" for m in members)
    changed = load_sweep(write(tmp_path, TREE), ["rl.loss=cpgd", f"folder={tmp_path / 'other'}"])
    assert changed.folder == tmp_path / "other" and {m.config.rl.loss for m in changed.members} == {"cpgd"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"command": "eval"},
            "mine.yaml: command must be one of train, sft, prm train, with an imitation train; got eval",
        ),
        ({"command": "sft", "imitation": "a.yaml"}, "mine.yaml: command must be one of"),
        ({"command": "prm train"}, "prm.labels is not given"),
        ({"seed": [1]}, "mine.yaml: unknown keys ..seed..; a sweep has config, folder"),
        ({"seeds": [1, 1]}, "mine.yaml: seeds must be different integers"),
        ({"seeds": 1}, "mine.yaml: seeds must be a list; got 1"),
        ({"grid": {"rl.loss": "pg"}}, "mine.yaml: grid: rl.loss must be a list of values; got 'pg'"),
        ({"variants": {"a": "pg"}}, "mine.yaml: settings of a.* must be config keys"),
        ({"variants": {"a": {"rl.los": "pg"}}}, "unknown key 'rl.los'; the nearest key is 'rl.loss'"),
        ({"variants": {"a b": {}, "a_b": {}}, "grid": {}}, "two kinds of run would be called 'a_b'"),
        ({"variants": {"a": {"rl.group_size": 1}}, "grid": {}}, "mine.yaml: a: rl.group_size must be at least 2"),
        ({"overrides": {"stages": [{"steps": 1}]}}, "mine.yaml: overrides: stages cannot be set for a run of a sweep"),
        ({"config": str(CONFIGS / "mm_eureka_qwen_32b.yaml")}, "mine.yaml: plain.* has stages, which a sweep cannot"),
        ({"grid": {"seed": [0, 1]}}, "mine.yaml: grid: seed cannot be set for a run of a sweep, which has seeds"),
        ({"variants": {"a": {"run_dir": "x"}}}, "settings of a: run_dir cannot be set .* which has folder"),
        ({"metrics": [{"validation/accuracy": "x"}]}, "mine.yaml: metrics must be a list of texts"),
        ({"summary": ["best accuracy"]}, "summary entry 'best accuracy': expected one of first, last"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: no such config file"),
        ({"config": None}, "mine.yaml: config must be text"),
        ({"folder": "a\0b"}, "mine.yaml: folder must be text; got one with control characters"),
        ({"seeds": [True]}, "mine.yaml: seeds must be different integers"),
        ({"seeds": [10**30]}, "mine.yaml: plain.*: seed must be at most 2,147,483,647"),
        (
            {"overrides": {"rl.group_size": 1e12}, "grid": {}},
            "mine.yaml: plain: rl.group_size must be at most 1,048,576",
        ),
        ({"grid": {f"rl.{key}": [0] * 9 for key in "abcdefghij"}}, "6,973,568,802 kinds of run; .* at most 1,000"),
        ({"variants": {"a" * 300: {}}}, "a kind of run would be called aaa.* name it as a variant"),
        ({"metrics": ["\0"]}, "mine.yaml: metrics must be a list of texts"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_sweep(write(tmp_path, TREE | change))


def test_a_missing_file_and_a_run_that_is_not_there(tmp_path, capsys):
    assert mmeureka("sweep", str(tmp_path / "no.yaml")) == 2
    assert "no.yaml: no such config file" in capsys.readouterr().err
    assert mmeureka("sweep", str(write(tmp_path, TREE)), "--index", "8") == 2
    assert "there is no run 8; their indices are 0 to 7" in capsys.readouterr().err


@pytest.fixture
def ran(monkeypatch):
    """In place of the process of a run: writes what a run leaves behind. Runs of seed 5 stop with an error."""
    folders = []

    def run(processes, command, config, *options):
        folder = Path(config.run_dir)
        folders.append(folder)
        rows = [{"step": s, "validation/accuracy": config.seed + s * config.optimizer.learning_rate} for s in range(3)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        write_metadata(folder, {"config": to_dict(config)})
        if config.seed == 5:
            (folder / sweep.STOPPED_FILE).write_text(json.dumps({"message": "no group survived"}))
        else:
            (folder / "checkpoints" / str(config.steps)).mkdir(parents=True)
        return config.seed == 5

    monkeypatch.setattr(sweep._Processes, "run", run)
    return folders


def test_each_run_is_made_once_and_counts_also_where_it_stopped(tmp_path, ran):
    chosen = load_sweep(write(tmp_path, TREE | {"variants": {"plain": {}}, "summary": ["last validation/accuracy"]}))
    assert [state(member) for member in chosen.members] == ["not begun"] * 4
    run_sweep(chosen, only=2, show=False)
    assert ran == [chosen.members[2].folder]
    run_sweep(chosen, show=False)
    run_sweep(chosen, show=False)
    assert sorted(ran) == sorted(member.folder for member in chosen.members)
    assert state(chosen.members[0]) == "done" and state(chosen.members[1]) == "stopped at step 2: no group survived"
    table = (chosen.folder / "summary.md").read_text().splitlines()
    assert table[0] == "| kind | runs | last validation/accuracy | state |"
    first = (
        "| plain_learning_rate=0.001_group_size=4 | 2 | 4.002 ± 1.4 | seed 5: stopped at step 2: no group survived |"
    )
    assert table[2] == first and len(table) == 4
    rows = (chosen.folder / "runs.csv").read_text().splitlines()
    assert rows[0] == "kind,run,optimizer.learning_rate,rl.group_size,steps,last validation/accuracy,state"
    assert rows[1] == "plain_learning_rate=0.001_group_size=4,seed 3,0.001,4,2,3.002,done"
    run_sweep(chosen, retry=True, show=False)
    assert len(ran) == 6


def test_a_run_with_other_settings_is_in_the_way(tmp_path, ran, capsys):
    chosen = load_sweep(write(tmp_path, TREE))
    run_sweep(chosen, only=0, show=False)
    changed = load_sweep(write(tmp_path, TREE | {"overrides": {"steps": 4}}))
    with pytest.raises(UserError, match=r"seed3 holds a run with other settings:\n  steps: 2 -> 4"):
        run_sweep(changed, show=False)
    assert mmeureka("sweep", str(tmp_path / "mine.yaml"), "--list") == 2
    write(tmp_path, TREE)
    assert mmeureka("sweep", str(tmp_path / "mine.yaml"), "--list") == 0
    assert capsys.readouterr().out.splitlines()[0] == "0\tplain_learning_rate=0.001_group_size=4\tseed 3\tdone"


def test_runs_are_compared_by_kind(tmp_path, ran, capsys):
    run_sweep(load_sweep(write(tmp_path, TREE)), show=False)
    folder = tmp_path / "out" / "plain_learning_rate=0.001_group_size=4"
    output = tmp_path / "comparison"
    assert (
        mmeureka("compare", f"a={folder}/seed3", f"a={folder}/seed5", f"{folder}/seed3", "--output", str(output)) == 0
    )
    assert capsys.readouterr().out == f"comparison: {output}/comparison.html\n"
    page = (output / "comparison.html").read_text()
    assert "3 runs of 2 kinds" in page and page.count("<svg") == 1
    assert mmeureka("compare", str(tmp_path / "nowhere"), "--output", str(output)) == 2
    assert "nowhere/metrics.jsonl: no metrics here" in capsys.readouterr().err


def program(tmp_path, monkeypatch, script):
    """In place of `python -m mmeureka_jax.cli`."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sweep.sys, "executable", str(path))


def test_what_a_process_says_by_its_exit_code(tmp_path, monkeypatch):
    config = load_sweep(write(tmp_path, TREE)).members[0].config
    with sweep._Processes() as processes:
        program(tmp_path, monkeypatch, "echo fine")
        assert processes.run("train", config) is False
        program(tmp_path, monkeypatch, "echo 'mmeureka: error: all alike' >&2; exit 3")
        assert processes.run("train", config) is True
        assert json.loads((Path(config.run_dir) / sweep.STOPPED_FILE).read_text()) == {"message": "all alike"}
        program(tmp_path, monkeypatch, "echo 'mmeureka: error: disk full' >&2; exit 2")
        with pytest.raises(UserError, match="seed3: disk full"):
            processes.run("train", config)
        program(tmp_path, monkeypatch, "echo Killed >&2; exit 137")
        with pytest.raises(
            sweep.Crashed, match=r"seed3: the run crashed \(exit code 137\); .*log.txt has .*ends\nKilled"
        ):
            processes.run("train", config)
        assert (Path(config.run_dir) / sweep.LOG_FILE).read_text().startswith("fine\nmmeureka: error: all alike\n")


@pytest.mark.parametrize(
    ("number", "name", "error", "message"),
    [
        (signal.SIGTERM, "TERM", Terminated, "stopped by SIGTERM during .*seed3"),
        (signal.SIGINT, "INT", KeyboardInterrupt, "^$"),
    ],
)
def test_a_signal_is_passed_on_and_ends_the_sweep(tmp_path, monkeypatch, number, name, error, message):
    chosen = load_sweep(write(tmp_path, TREE))
    program(tmp_path, monkeypatch, f"trap 'sleep 0.3; echo noted; exit 1' {name}; touch begun; sleep 60 & wait")
    monkeypatch.chdir(tmp_path)

    def send():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with pytest.raises(error, match=message):
        run_sweep(chosen, show=False)
    assert (chosen.members[0].folder / sweep.LOG_FILE).read_text() == "noted\n"
    assert not chosen.members[1].folder.exists()


def test_a_run_that_outlived_its_sweep_is_waited_for(tmp_path, monkeypatch, capsys):
    chosen = load_sweep(write(tmp_path, TREE))
    program(tmp_path, monkeypatch, "cat held && touch began_too_early")
    (tmp_path / "held").touch()
    monkeypatch.chdir(tmp_path)
    folder = chosen.members[0].folder

    def end():
        time.sleep(0.3)
        (tmp_path / "held").unlink()
        stack.close()

    stack = contextlib.ExitStack()
    stack.enter_context(exclusive(folder))
    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(UserError, match="crashed"):  # what it waited for is gone when it begins
        run_sweep(chosen, only=0, show=False)
    thread.join()
    assert f"{folder}: waiting for the process that is running in this folder" in capsys.readouterr().err
    assert not (tmp_path / "began_too_early").exists()


def test_a_crash_does_not_keep_the_others_from_running(tmp_path, monkeypatch):
    chosen = load_sweep(write(tmp_path, TREE))
    program(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(UserError, match="the same command tries them again") as error:
        run_sweep(chosen, show=False)
    assert str(error.value).count("the run crashed (exit code 1)") == 8


def test_runs_start_from_an_imitation_that_is_made_once(tmp_path, monkeypatch):
    commands = []

    def run(processes, command, config, *options):
        commands.append((command, Path(config.run_dir).name, *options))
        write_metadata(Path(config.run_dir), {"config": to_dict(config)})
        if command == "export":
            export = Path(config.run_dir) / "export"
            export.mkdir()
            (export / PROVENANCE_FILE).write_text(json.dumps({"step": config.steps}))
        return False

    monkeypatch.setattr(sweep._Processes, "run", run)
    path = write(tmp_path, TREE | {"imitation": str(CONFIGS / "demo_sft.yaml"), "seeds": [0]})
    export = tmp_path / "out" / "imitation" / "export"
    for _ in range(2):
        run_sweep(load_sweep(path), only=0, show=False)
    assert commands[:3] == [("sft", "imitation"), ("export", "imitation", f"--output={export}"), ("train", "seed0")]
    assert [command for command, *_ in commands].count("sft") == 1
    assert {member.config.model.checkpoint for member in load_sweep(path).members} == {str(export)}
    write(tmp_path, TREE | {"imitation": str(CONFIGS / "smoke.yaml"), "seeds": [0]})
    with pytest.raises(UserError, match="the imitation that all runs start from was made with other settings"):
        run_sweep(load_sweep(path), only=0, show=False)


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_table_of_one_that_was_not(tmp_path):
    write_guessing_checkpoint(tmp_path / "model", layers=1)
    tree = {
        "config": str(CONFIGS / "smoke.yaml"),
        "overrides": {
            "model.random": None, "model.checkpoint": str(tmp_path / "model"), "steps": 2, "data.validation": None,
            "reward.workers": 1, "rl.filter.enabled": False, "rl.micro_batches": 1, "rl.packing": 0,
        },
        "seeds": [0],
        "variants": {"pg": {"rl.loss": "pg"}},
        "summary": ["last reward/accuracy", "end loss/total", "last optimizer/grad_norm"],
    }  # fmt: skip
    path = write(tmp_path, tree)
    tables = []
    for name, killed in (("whole", False), ("killed", True)):
        command = [sys.executable, "-m", "mmeureka_jax.cli", "sweep", str(path), f"folder={tmp_path / name}"]
        if killed:
            process = subprocess.Popen(command, env=environment(), start_new_session=True)
            begun = tmp_path / name / "pg" / "seed0" / "checkpoints" / "1"
            deadline = time.monotonic() + 300
            while not begun.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.kill()  # and not its run, which ends by itself; the next start waits for that
            process.wait()
            assert state(load_sweep(path, [f"folder={tmp_path / name}"]).members[0]) != "done"
        subprocess.run(command, env=environment(), check=True, timeout=600)
        files = ("runs.csv", "summary.csv", "summary.md")
        tables.append([(tmp_path / name / file).read_text() for file in files])
    assert tables[0] == tables[1]
    assert tables[0][1].splitlines()[0] == "kind,runs," + ",".join(tree["summary"]) + ",state"
    assert [line.split(",")[:2] for line in tables[0][0].splitlines()[1:]] == [["pg", "seed 0"]]
    assert "<svg" in (tmp_path / "killed" / "comparison.html").read_text()
