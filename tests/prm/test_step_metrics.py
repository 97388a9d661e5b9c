"""The metrics of step scores, each against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmeureka_jax.prm.validation import auroc, step_metrics


@pytest.fixture(scope="module")
def steps():
    """Scores that repeat, and labels."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 20, 200).astype(np.float32) + 0.5) / 20, rng.choice([0.0, 0.0, 0.25, 0.5, 1.0], 200)


def test_the_area_is_the_chance_that_the_better_step_scores_higher(steps):
    scores, labels = steps
    pairs = list(itertools.product(scores[labels > 0], scores[labels == 0]))
    expected = np.mean([1.0 if good > bad else 0.5 if good == bad else 0.0 for good, bad in pairs])
    assert auroc(scores, labels > 0) == pytest.approx(expected, abs=1e-12)
    assert step_metrics(scores, labels)["validation/auroc"] == pytest.approx(expected, abs=1e-12)


def test_steps_of_one_kind_have_no_area():
    assert auroc(np.asarray([0.2, 0.7]), np.asarray([True, True])) is None
    assert "validation/auroc" not in step_metrics(np.asarray([0.2, 0.7]), np.asarray([0.0, 0.0]))


def test_cross_entropy_and_accuracy_are_those_of_each_step(steps):
    scores, labels = steps
    inside = np.clip(scores, 0.05, 0.95)
    metrics = step_metrics(inside, labels)
    terms = [-(y * np.log(p) + (1 - y) * np.log(1 - p)) for p, y in zip(inside.astype(float), labels, strict=True)]
    assert metrics["validation/cross_entropy"] == pytest.approx(np.mean(terms), rel=1e-6)
    right = [(p >= 0.5) == (y >= 0.5) for p, y in zip(inside, labels, strict=True)]
    assert metrics["validation/accuracy"] == np.mean(right) and metrics["validation/steps"] == 200
    assert np.isfinite(step_metrics(np.asarray([0.0, 1.0]), np.asarray([1.0, 0.0]))["validation/cross_entropy"])


def test_the_calibration_curve_has_the_means_of_each_bin(steps):
    scores, labels = steps
    metrics = step_metrics(scores, labels)
    error = 0.0
    for start in np.arange(10) / 10:
        inside = [i for i, p in enumerate(scores) if start < p < start + 0.1]
        name = f"validation/calibration/{start:g}"
        assert metrics[f"{name}/label"] == pytest.approx(labels[inside].mean())
        assert metrics[f"{name}/score"] == pytest.approx(scores[inside].mean(), rel=1e-6)
        assert metrics[f"{name}/share"] == pytest.approx(len(inside) / 200)
        error += len(inside) / 200 * abs(labels[inside].mean() - scores[inside].mean())
    assert metrics["validation/calibration_error"] == pytest.approx(error, rel=1e-6)
    assert step_metrics(np.asarray([1.0]), np.asarray([1.0]))["validation/calibration/0.9/share"] == 1
    assert "validation/calibration/0.5/score" not in step_metrics(np.asarray([0.1]), np.asarray([0.0]))
