"""The calibration curve of a report."""

from __future__ import annotations

import numpy as np

from mmeureka_jax.prm.validation import step_metrics
from mmeureka_jax.report.calibration import draw_calibration


def row(step, scores, labels):
    return {"step": step, **step_metrics(np.asarray(scores), np.asarray(labels))}


def test_the_first_and_the_last_validation_are_drawn():
    rows = [
        row(0, [0.55, 0.55], [1, 0]), {"step": 1, "prm/loss": 0.5}, row(2, [0.3], [1]),
        row(4, [0.95, 0.85, 0.05], [1, 0.5, 0.25]),
    ]  # fmt: skip
    figure = draw_calibration(rows)
    assert figure is not None and figure.count("<svg") == 1
    assert "Step 0, score to label in percent: 55 to 50." in figure
    assert "Step 4, score to label in percent: 5 to 25; 85 to 50; 95 to 100." in figure
    assert "Step 2" not in figure and "mean distance <b>20&thinsp;%</b>" in figure  # (5 + 35 + 20) / 3


def test_a_run_without_step_labels_has_none():
    assert draw_calibration([{"step": 1, "validation/accuracy": 0.5}]) is None
