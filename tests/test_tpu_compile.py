"""The programs of configs/smoke.yaml, planned for a TPU slice that is not there by the TPU compiler."""

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
def planned():
    """The default mesh axes with tensor parallelism, so that all kinds of sharding are there; bfloat16, as on a TPU.

    Of each kind of program there is one size, and of those that decode two, so that one repacks.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.fail("libtpu, the TPU compiler, is not installed; the test extra brings it: pip install -e '.[test]'")
    command = [
        sys.executable, "-m", "tests.helpers.compile_for_tpu", "v5e:2x2", "configs/smoke.yaml", "mesh.tensor=2",
        "data.max_image_windows=1", "data.validation=null", "rl.packing=0", "sampler.shrink=0.3",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["start", "decode", "gradients"])
def test_the_program_compiles_for_four_chips(planned, name):
    program = planned["programs"][name]
    assert program["tiled_layouts"] > 100, "not the TPU compiler's layouts"
    assert program["bfloat16_products"] > 10
    assert "all-reduce" in program["collectives"]
    assert "all-gather" in program["collectives"] or name.startswith("decode")


@pytest.mark.slow
def test_repacking_moves_nothing_between_chips(planned):
    """Each chooses among its own rows."""
    assert planned["programs"]["repack"]["collectives"] == []


@pytest.mark.slow
def test_a_chip_holds_its_share_of_the_state_and_updates_in_place(planned):
    share = planned["state_bytes"] / 4
    update = planned["programs"]["optimiser"]
    # Tiles of 8 x 128 pad the narrow tensors of this model, and the vision tower is split over fsdp = 2 alone.
    assert share < update["arguments"] < planned["state_bytes"]
    assert update["aliased"] > 0.9 * share


@pytest.mark.slow
def test_the_plan_counts_what_is_there_beside_a_program(planned):
    """Peak and resident of every program against one chip of the slice."""
    plan = planned["plan"]
    assert plan["fits"] and plan["chips"] == 4 and plan["limit_bytes"] == int(15.75 * 2**30)
    by_kind = {program["name"].partition(",")[0]: program for program in plan["programs"]}
    assert by_kind["gradients"]["resident_bytes"] > planned["state_bytes"] / 4 / 2  # the two moments of Adam, of four
    assert all(0 < program["peak_bytes"] < plan["limit_bytes"] for program in plan["programs"])
