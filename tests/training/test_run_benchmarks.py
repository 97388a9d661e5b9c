"""Public benchmarks during training: `tracking.benchmarks` asks and judges as `mmeureka eval` does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import mmeureka, read_rows
from helpers.guessing import write_guessing_checkpoint
from helpers.releases import write_suite

from mmeureka_jax.config.load import load_config
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.training import sft

SETTINGS = """
    steps=2 model.random=null sampler.max_new_tokens=4 sft.problems_per_step=8 sft.micro_batches=1
    sft.max_response_tokens=32 data.train=tfds:shapes/dots@train[:16] data.validation=null data.prompt_style=plain
    checkpoint.every_steps=1 tracking.progress=false tracking.tensorboard=false tracking.validation_batch=8
    tracking.benchmarks.problems=5 tracking.benchmarks.every=2 optimizer.learning_rate=1e-3
""".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of a suite, a checkpoint and a run that was measured on that suite."""
    folder = tmp_path_factory.mktemp("made")
    write_guessing_checkpoint(folder / "model", layers=1)
    write_suite(folder)
    sft.fine_tune(config_of(folder))
    return folder


def config_of(folder: Path):
    given = [f"run_dir={folder / 'run'}", f"model.checkpoint={folder / 'model'}"]
    given += [f"tracking.benchmarks.suite={folder / 'suite.yaml'}", f"tracking.benchmarks.files={folder}"]
    return load_config("configs/smoke.yaml", [*given, *SETTINGS])


@pytest.mark.slow
def test_a_run_is_measured_as_eval_measures_its_export(made, tmp_path):
    folder = made / "run" / "benchmarks"
    assert sorted(one.name for one in folder.iterdir()) == ["step_00000002"]
    rows = read_metrics(made / "run")
    row = rows[-1]
    assert [row["step"] for row in rows if "time/benchmarks" in row] == [2]
    results = json.loads((folder / "step_00000002" / "results.json").read_text())["benchmarks"]
    for name, figures in results.items():
        assert figures["partial"] and figures["count"] == 5
        for key in ("official", "ours", "unparsed", "truncated", "failed"):
            assert row[f"benchmark/{name}/{key}"] == figures[key]
    assert [results[name]["settings"]["prompt_style"] for name in results] == ["instruct", "plain"]
    assert results["mmk12"]["settings"]["step"] == 2 and (folder / "step_00000002" / "eval.html").is_file()
    ids = [row["id"] for row in read_rows(folder / "step_00000002" / "mmk12.jsonl")]
    assert ids == ["0", "2", "4", "7", "9"]  # evenly spaced

    assert mmeureka("export", made / "run", "--output", tmp_path / "exported") == 0
    suite = ["--suite", made / "suite.yaml", "--files", made, "--partial", "--batch-size", 8]
    assert mmeureka("eval", "--model", tmp_path / "exported", *suite, "--output", tmp_path / "eval") == 0
    for name in results:
        alone = {row["id"]: row["response"] for row in read_rows(tmp_path / "eval" / f"{name}.jsonl")}
        for row in read_rows(folder / "step_00000002" / f"{name}.jsonl"):
            assert row["response"] == alone[row["id"]]


@pytest.mark.slow
def test_a_resumed_run_takes_back_later_benchmarks(made):
    later = made / "run" / "benchmarks" / "step_00000007"
    later.mkdir()
    (later / "results.json").write_text("{}")
    (other := later.with_name("mine")).mkdir()
    sft.fine_tune(config_of(made))
    assert not later.exists() and other.is_dir()
    assert (later.with_name("step_00000002") / "results.json").is_file()
