"""The header of a command: parameters in all and trained ones, the mesh, and where a run starts."""

from __future__ import annotations

import functools

import jax
import pytest
from helpers.commands import TINY

from mmeureka_jax.config.schema import LoraConfig, MeshConfig, ModelConfig
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.setup.header import say_header, say_start
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.setup.random_models import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("header") / "model"
    write_tiny_checkpoint(folder, TINY)
    return folder


def header(capsys, checkpoint, frozen=(), lora=None) -> dict[str, str]:
    """The lines by their names."""
    opened = open_policy(checkpoint, ModelConfig(lora=lora), MeshConfig(data=2, fsdp=2, tensor=2))
    say_header("train", opened, "owner/model", frozen=frozen, run_dir="runs/x")
    title, *lines = capsys.readouterr().err.splitlines()
    assert title.startswith("mmeureka_jax ") and title.endswith(": train")
    return dict(line.split(maxsplit=1) if "run folder" not in line else line.rsplit(maxsplit=1) for line in lines)


def test_devices_mesh_and_policy(capsys, checkpoint):
    facts = header(capsys, checkpoint)
    assert facts["devices"] == "8 x cpu" and facts["mesh"] == "data 2 x fsdp 2 x tensor 2"
    assert facts["model"] == "qwen2_5_vl, owner/model" and facts["  run folder"] == "runs/x"


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({}, ", all are trained"),
        ({"frozen": ("vision",)}, " are trained"),
        ({"lora": LoraConfig(rank=2)}, " in adapters are trained"),
    ],
)
def test_trained_parameters(capsys, checkpoint, options, ending):
    total, trained = header(capsys, checkpoint, **options)["parameters"].split(",")
    assert float(total.removesuffix(" M")) > 0.01 and f",{trained}".endswith(ending)
    assert ("all" in trained) == (not options)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (0, "a new run of 6 steps"),
        (3, "from step 3 of 6, the newest checkpoint"),
        (6, "already finished, 6 of 6 steps: nothing is left to train; see runs/x/report.html"),
    ],
)
def test_where_a_run_starts(capsys, step, text):
    say_start(step, 6, "runs/x")
    assert capsys.readouterr().err == f"  start       {text}\n"


def test_commands_without_a_run_have_a_shorter_one(capsys, checkpoint, monkeypatch):
    one_device = functools.partial(open_policy, devices=jax.devices()[:1])
    monkeypatch.setattr("mmeureka_jax.evaluation.options.open_policy", one_device)
    ModelOptions(str(checkpoint)).open("eval")
    title, *lines = capsys.readouterr().err.splitlines()
    assert title.endswith(": eval") and [line.split()[0] for line in lines] == [
        "devices",
        "mesh",
        "model",
        "parameters",
    ]
    assert "trained" not in lines[-1]
