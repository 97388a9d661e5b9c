"""The TFDS dataset `shapes`: prepared once, whole or not at all, read back as generated."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmeureka_jax.data.builders import shapes as shapes_builder
from mmeureka_jax.data.builders.shapes import Shapes, prepare_shapes
from mmeureka_jax.data.shapes.problems import generate
from mmeureka_jax.errors import UserError

SMALL = """
import dataclasses, sys
from mmeureka_jax.data.builders.shapes import Shapes, prepare_shapes
Shapes.BUILDER_CONFIGS = [dataclasses.replace(c, train_size={size}, test_size=8) for c in Shapes.BUILDER_CONFIGS]
print("ready", flush=True)
prepare_shapes("shapes/easy", sys.argv[1])
"""


@pytest.fixture
def small_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [dataclasses.replace(config, train_size=24, test_size=8) for config in Shapes.BUILDER_CONFIGS]
    monkeypatch.setattr(Shapes, "BUILDER_CONFIGS", small)
    # TFDS remembers the configs of a class; without this, tests after this one might prepare the small ones for good.
    monkeypatch.setattr(Shapes, "builder_configs", {config.name: config for config in small}, raising=False)


def start_preparing(data_dir: Path, size: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SMALL.format(size=size), str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("config", ["mixed", "clock", "steps-mixed", "steps-dice"])
def test_rows_read_back_as_generated(small_configs: None, tmp_path: Path, config: str):
    builder = prepare_shapes(f"shapes/{config}", tmp_path)
    settings = builder.builder_config
    careless = {"steps-mixed": 0.5, "steps-dice": 0.7}.get(config)
    for split, size, worse in (("train", 24, careless or 0.6), ("test", 8, 0.0)):
        shares = {"careless_fraction": worse} if careless else {"hasty_fraction": worse}
        rows = builder.as_data_source(split)
        assert len(rows) == size
        for index in range(size):
            problem = generate(index, split=split, mixture=settings.mixture, side=settings.side, **shares)
            row = rows[index]
            assert row["image"] == problem.image
            for name in ("id", "question", "answer"):
                assert row[name].decode() == getattr(problem, name)
            assert json.loads(row["metadata"]) == problem.metadata()
    assert len(builder.as_data_source("test[:3]")) == 3


@pytest.mark.parametrize("config", ["easy", "steps-easy"])
def test_test_split_offers_careful_solutions(small_configs: None, tmp_path: Path, config: str):
    rows = prepare_shapes(f"shapes/{config}", tmp_path).as_data_source("test")
    assert {json.loads(row["metadata"])["style"] for row in rows} == {"careful"}


def test_prepared_data_is_not_made_again(small_configs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepare_shapes("shapes/easy", tmp_path)
    monkeypatch.setattr(shapes_builder, "generate", None)
    builder = prepare_shapes("shapes/easy:1.0.0", tmp_path)
    assert len(builder.as_data_source("train")) == 24


def test_first_config_is_the_default(small_configs: None, tmp_path: Path):
    assert prepare_shapes("shapes", tmp_path).builder_config.name == "mixed"


@pytest.mark.parametrize("name", ["shapes/eazy", "shapes/easy:9.9.9", "shape", "shapes/"])
def test_unknown_names_are_user_errors(name: str, tmp_path: Path):
    with pytest.raises(UserError, match="tfds:"):
        prepare_shapes(name, tmp_path)
    assert not any(path.is_file() and path.suffix != ".json" for path in tmp_path.rglob("*"))


def test_a_folder_that_cannot_be_written_is_a_user_error(small_configs: None, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        prepare_shapes("shapes/easy", tmp_path / "file")


def test_two_at_once_give_one_whole_dataset(small_configs: None, tmp_path: Path):
    output = sys.stdout
    with ThreadPoolExecutor(2) as pool:
        builders = list(pool.map(lambda _: prepare_shapes("shapes/easy", tmp_path), range(2)))
    assert sys.stdout is output
    for builder in builders:
        rows = builder.as_data_source("train")
        assert [row["id"] for row in rows] == [row["id"] for row in builders[0].as_data_source("train")]
        assert len(rows) == 24


@pytest.mark.slow
def test_killed_preparation_leaves_nothing_that_is_taken_for_whole(small_configs: None, tmp_path: Path):
    process = start_preparing(tmp_path, size=10**6)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while not list(tmp_path.rglob("incomplete.*")):
        assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "shapes" / "easy" / "1.0.0").exists()
    assert len(prepare_shapes("shapes/easy", tmp_path).as_data_source("train")) == 24


@pytest.mark.slow
def test_two_processes_at_once_both_succeed(tmp_path: Path, small_configs: None):
    processes = [start_preparing(tmp_path, size=24) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert len(prepare_shapes("shapes/easy", tmp_path).as_data_source("train")) == 24
