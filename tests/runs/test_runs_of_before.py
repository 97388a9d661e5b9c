"""Run folders that an earlier version made (commit 9422c1b) continue in this one as they would have in that one.

Each archive in `before/` is a run of six steps, killed after the checkpoint of step 3, with groups that wait for an
update. Next to it is what the earlier version came to when it continued: the rows of steps 4 to 6 (`rows`), the
progress record and a checksum of every array of checkpoint 6, and in the .npz file the trained parameters.

They are made by `mmeureka train configs/smoke.yaml` with `model.random` of one layer of width 8, and

    frozen_tower    a frozen vision tower (the groups hold image embeddings), a reference policy with an adaptive
                    coefficient, an average of the parameters, two epochs a rollout
    whole_model     everything trained (the groups hold patches), GAE with a value head

Later changes of the order of sums change last bits: `since` has the bits of frozen_tower from when whole rows carry
their pictures and the residual stream was split (2026-11-30); numbers are held to those of the earlier version to
rounding.

Bits depend on the CPU's instructions and on the version of JAX: where these are not those of the recording, numbers
are compared to rounding.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.commands import environment

BEFORE = Path(__file__).parent / "before"


def this_cpu() -> str:
    """A name for what the CPU can do."""
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    return hashlib.sha256(flags[0].encode()).hexdigest() if flags else ""


def checksum(x: np.ndarray) -> str:
    return hashlib.sha256(str(x.dtype).encode() + str(x.shape).encode() + x.tobytes()).hexdigest()


def continue_run(run_dir: Path) -> None:
    """As its user would: `mmeureka train run/config.yaml`, in the folder that its paths are relative to."""
    command = [sys.executable, "-m", "mmeureka_jax.cli", "train", "run/config.yaml"]
    done = subprocess.run(command, cwd=run_dir.parent, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "from step 3 of 6, the newest checkpoint" in done.stderr


def rows_of(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if not name.startswith("time/")} for row in rows]


def arrays_of(checkpoint: Path) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(ocp.StandardCheckpointer().restore(checkpoint / "state"))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen_tower", "whole_model"])
def test_a_run_of_an_earlier_version_continues_as_it_would_have(tmp_path, name):
    # The first releases of Python 3.11 have no filters.
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(BEFORE / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, **safely)
    expected = json.loads((BEFORE / f"{name}.json").read_text())
    run_dir = tmp_path / name / "run"
    is_alike = (jax.__version__, this_cpu()) == (expected["jax"], expected["cpu"])
    continue_run(run_dir)
    rows = rows_of(run_dir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    arrays = arrays_of(run_dir / "checkpoints" / "6")
    assert arrays.keys() == expected["digests"].keys()
    if is_alike:
        exactly = expected.get("since", expected)
        assert rows[4:] == exactly["rows"]
        assert {path: checksum(x) for path, x in arrays.items()} == exactly["digests"]
    for row, before in zip(rows[4:], expected["rows"], strict=True):
        assert row == pytest.approx(before, rel=1e-3, abs=1e-5)
    with np.load(BEFORE / f"{name}.npz") as trained:
        for path in trained:
            np.testing.assert_allclose(arrays[path], trained[path], rtol=1e-3, atol=1e-5, err_msg=path)
