"""The programs of configs/smoke.yaml, compiled ahead of time by the TPU compiler, without a TPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The default mesh axes with tensor parallelism, so that all kinds of sharding are there; bfloat16, as on a TPU."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.fail("libtpu, the TPU compiler, is not installed; the test extra brings it: pip install -e '.[test]'")
    command = [
        sys.executable, "-m", "tests.helpers.compile_for_tpu", "configs/smoke.yaml", tmp_path_factory.mktemp("tpu"),
        "mesh.tensor=2", "model.compute_dtype=bfloat16",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["start", "decode", "decode_half", "gradients"])
def test_the_program_compiles_for_four_chips(programs, name):
    program = programs[name]
    assert program["tiled_layouts"] > 100, "not the TPU compiler's layouts"
    assert program["bfloat16_products"] > 10
    assert "all-reduce" in program["collectives"]
    assert "all-gather" in program["collectives"] or name.startswith("decode")


@pytest.mark.slow
def test_repacking_moves_nothing_between_chips(programs):
    """Each chooses among its own rows."""
    assert programs["repack"]["collectives"] == []


@pytest.mark.slow
def test_a_chip_holds_its_share_of_the_state_and_updates_in_place(programs):
    share = programs["state_bytes"] / 4
    update = programs["optimiser"]
    # Tiles of 8 x 128 pad the narrow tensors of this model, and the vision tower is split over fsdp = 2 alone.
    assert share < update["arguments"] < programs["state_bytes"]
    assert update["aliased"] > 0.9 * share
