"""Whatever a run of these tests logs has a line in the reference of metrics."""

import pytest

from mmeureka_jax.runs.metrics import metric_of
from mmeureka_jax.runs.tracking import Tracker


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
