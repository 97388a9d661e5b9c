"""Meshes of TPU slices that are not there."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmeureka_jax.config.load import load_config
from mmeureka_jax.sampling.spread import copies_of_prompts
from mmeureka_jax.training.rl import recipe

DESCRIBED = {
    "v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256, "v6e:4x4": 16, "v6e:16x16": 256, "v5p:2x2x2": 8, "v5p:2x2x4": 16,
    "v5p:4x4x4": 64, "v4:2x2x2": 16, "v4:4x4x4": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def described():
    """What becomes of each mesh on TPU slices that are not there, whose hosts have four chips."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.fail("libtpu, which describes the slices, is not installed; the test extra brings it")
    command = [sys.executable, "-m", "tests.helpers.meshes_of_tpus", *DESCRIBED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_tpu_slice_has_its_meshes(described, name):
    """Every power of two for context and tensor. Hosts share rows only where they must, and each chip of a tensor group
    has another one of it next to it in the network."""
    for sizes, made in described[name].items():
        context, tensor = map(int, sizes.split())
        if tensor == 3:
            assert f"does not divide the {DESCRIBED[name]} devices" in made["refused"]
            continue
        assert made["shape"] == [1, DESCRIBED[name] // context // tensor, context, tensor]
        assert made["devices"] == DESCRIBED[name] and made["hops_to_the_next"] <= 1
        assert made["shares"] == min(made["hosts"], made["shape"][1])
        assert made["hosts_of_a_share"] == [made["hosts"] // made["shares"]]
        assert made["shares_of_sampler"] >= made["shares"]


def test_the_readmes_command_for_16_chips_starts(described):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    command = re.search(r"on 16 chips(?s:.*?) -- (\S+\.yaml) (?s:.*?)mesh\.tensor=(\d)", text)
    tensor = int(command[2])
    assert all(
        described[name][f"1 {tensor}"]["shape"] == [1, 16 // tensor, 1, tensor] for name in ("v5e:4x4", "v6e:4x4")
    )
    job = recipe(load_config(command[1], [f"mesh.tensor={tensor}"]))
    assert copies_of_prompts(job.prompts_per_batch, 16 // tensor, job.group_size) == 1
