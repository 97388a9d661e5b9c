"""What is between the stages of a run."""

from __future__ import annotations

import subprocess

import pytest

from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.training import rl


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [("loading ...\nmmeureka: error: the disk is full\n", "the disk is full"), ("", "exit code 2")],
)
def test_a_policy_that_cannot_be_exported_for_the_next_stage(tmp_path, monkeypatch, stderr, reason):
    monkeypatch.setattr(rl.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2, "", stderr))
    with pytest.raises(UserError) as caught:
        rl.export_policy(Config(run_dir=str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: the policy cannot be written for the next stage: {reason}"
