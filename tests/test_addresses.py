"""Addresses where a path belongs (gs://bucket/run): refused with what to use instead, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import mmeureka

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import address_problem, atomic_writer, exclusive
from mmeureka_jax.setup.checks import validate_config

ADDRESS = "gs://b/x"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working directory, which stays so."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".yaml"] == []


@pytest.mark.parametrize(
    "line",
    [
        "train c.yaml run_dir=gs://b/x", "sft gs://b/x", "demo --output gs://b/x", "report gs://b/x",
        "eval --model gs://b/x --data d --output o", "eval --model m --data gs://b/x --output o",
        "eval --model m --data d --output=gs://b/x", "eval --model m --data d --output o --root gs://b/x",
        "sample --model m --input p --output gs://b/x", "sample --model m --input p --output o --image-root gs://b/x",
        "score --model m --adapters gs://b/x --input p --output o", "export gs://b/x --output o",
        "export r --output gs://b/x", "export r --output o --source gs://b/x", "convert gs://b/x --output o",
        "sweep s.yaml folder=gs://b/x", "compare KIND=gs://b/x --output o", "data check gs://b/x",
        "data build d --name x --output gs://b/x", "data show gs://b/x",
    ],
)  # fmt: skip
def test_an_address_as_an_argument(empty, capsys, line):
    assert mmeureka(*line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmeureka: error: ") and error.count("\n") == 1
    assert f": {ADDRESS} is an address" in error and "all hosts of the run share (NFS, Filestore or Lustre)" in error


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "TFDS_DATA_DIR", "HF_HOME"])
def test_an_address_in_a_variable(empty, capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, ADDRESS)
    assert mmeureka("report", "r") == 2
    assert f"${variable}: {ADDRESS} is an address" in capsys.readouterr().err


KEYS = """
    run_dir data.train data.validation data.root data.difficulty model.checkpoint model.lora.adapters
""".split()


@pytest.mark.parametrize("address", [ADDRESS, "s3://b/x", "hf://datasets/x", "gs:/b/x"])
@pytest.mark.parametrize("key", KEYS)
def test_an_address_in_a_config(key, address):
    config = load_config(None, ["model.random={}", f"{key}={address}"])
    with pytest.raises(UserError, match=rf"^{key}: {address} is an address"):
        validate_config(config)


def test_an_address_in_a_stage(empty):
    stages = load_config(None, ["model.random={}", 'stages=[{"data": {"train": "gs://b/x"}}]'])
    with pytest.raises(UserError, match=r"^stage 1: data\.train: gs://b/x is an address"):
        validate_config(stages)
    with pytest.raises(UserError, match=r"^run_dir: gs://b/x is an address"):
        validate_config(load_config(None, ["model.random={}", "stages=[{}]", f"run_dir={ADDRESS}"]))


def test_an_address_as_a_sweeps_folder(empty, capsys):
    (empty / "s.yaml").write_text(f"folder: {ADDRESS}\nconfig: c.yaml\nvariants: {{a: {{}}}}\n")
    assert mmeureka("sweep", "s.yaml", "--list") == 2
    assert f"s.yaml: folder: {ADDRESS} is an address" in capsys.readouterr().err


def test_nothing_is_written_to_an_address(empty):
    """What calls the package without its command line is refused as well."""
    path = Path(ADDRESS)  # gs:/b/x
    with pytest.raises(UserError, match="is an address"), atomic_writer(path):
        pass
    with pytest.raises(UserError, match="is an address"), exclusive(path):
        pass


def test_a_file_address_is_told_from_its_path():
    assert address_problem("data.train", "file:///a/b") == (
        "data.train: file:///a/b is an address; give the path itself, without file://"
    )


@pytest.mark.parametrize("value", ["Qwen/Qwen2.5-VL-7B-Instruct", "tfds:shapes/mixed@test[:64]", "/a/b", "C:/a", "a:b"])
def test_what_is_no_address(value):
    assert address_problem("x", value) is None
