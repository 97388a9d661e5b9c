"""Configs of whole runs of a policy that is right now and then. Whatever a run logs has a line in the reference."""

from __future__ import annotations

import pytest
from helpers.guessing import write_guessing_checkpoint
from helpers.small_runs import OVERRIDES, SMOKE, use_devices

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import Config
from mmeureka_jax.runs.metrics import metric_of
from mmeureka_jax.runs.tracking import Tracker


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "model"
    write_guessing_checkpoint(folder, layers=1)
    return folder


@pytest.fixture
def one_device(monkeypatch):
    use_devices(monkeypatch, 1)


@pytest.fixture
def make_config(policy, tmp_path):
    def make(*overrides: str) -> Config:
        return load_config(SMOKE, [f"run_dir={tmp_path / 'run'}", f"model.checkpoint={policy}", *OVERRIDES, *overrides])

    return make


@pytest.fixture(autouse=True)
def logged_metrics_are_described(monkeypatch):
    logged: set[str] = set()
    log_metrics = Tracker.log_metrics

    def note(tracker, step, row):
        logged.update(row)
        log_metrics(tracker, step, row)

    monkeypatch.setattr(Tracker, "log_metrics", note)
    yield
    unknown = sorted(name for name in logged if metric_of(name) is None)
    assert not unknown, f"{', '.join(unknown)}: give each a line in mmeureka_jax/runs/metrics.py"
