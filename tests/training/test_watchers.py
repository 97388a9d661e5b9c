"""Compilations of a process: how many, and for how long."""

from __future__ import annotations

import jax
import pytest

from mmeureka_jax.training import watchers
from mmeureka_jax.training.watchers import CompileCounter

TRACE = "/jax/core/compile/jaxpr_trace_duration"
LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILE = "/jax/core/compile/backend_compile_duration"


def test_seconds_of_compilation_count_once(monkeypatch):
    """Functions are traced within others: the time of the inner ones is part of the outer's."""
    now = [100.0]
    monkeypatch.setattr(watchers.time, "monotonic", lambda: now[0])
    with CompileCounter() as compiles:
        for end, event, seconds in [
            (101.0, TRACE, 0.5),
            (102.0, TRACE, 0.5),
            (103.0, TRACE, 3.0),  # around both
            (104.0, LOWER, 1.0),
            (110.0, COMPILE, 6.0),
            (120.0, "/jax/another", 9.0),
        ]:
            now[0] = end
            jax.monitoring.record_event_duration_secs(event, seconds)
        assert compiles.since_last() == 1 and compiles.since_last() == 0
        assert compiles.seconds_since_last() == pytest.approx(10)
        assert compiles.seconds_since_last() == 0
