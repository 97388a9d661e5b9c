"""Statistics of the ratio against NumPy, whole and in parts."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers.loss_cases import random_batch

from mmeureka_jax.rl.ratios import ratio_metrics, ratio_sums


@pytest.mark.parametrize("spread", [1e-5, 0.05, 3.0])
def test_metrics_equal_numpy_whole_and_in_parts(spread):
    log_probs, old, _, mask = random_batch(shape=(40, 8, 50), spread=spread)
    d = (log_probs.astype(np.float64) - old)[mask]
    ratio = np.exp(d)
    expected = {
        "policy/ratio": ratio.mean(),
        "policy/drift": (np.expm1(d) - d).mean(),
        "policy/effective_sample_size": ratio.sum() ** 2 / (len(d) * (ratio**2).sum()),
    }
    whole = ratio_sums(log_probs, old, mask)
    parts = [ratio_sums(log_probs[rows], old[rows], mask[rows]) for rows in (slice(0, 15), slice(15, 40))]
    for sums in (whole, jax.tree.map(np.add, *parts)):
        metrics = ratio_metrics(sums, np.float32(mask.sum()))
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(value, rel=1e-4, abs=1e-7), name
        for name, share in {"p01": 0.01, "p99": 0.99, "p999": 0.999}.items():
            exact = np.quantile(d, share)
            found = np.log(float(metrics[f"policy/ratio_{name}"]))
            assert found == pytest.approx(exact, rel=0.12, abs=2e-4), name


def test_tokens_behind_the_mask_and_broken_ones():
    log_probs, old, _, mask = random_batch()
    dirty = np.where(mask, log_probs, np.nan)
    jax.tree.map(np.testing.assert_array_equal, ratio_sums(dirty, old, mask), ratio_sums(log_probs, old, mask))
    index = tuple(np.argwhere(mask)[0])
    log_probs[index] = old[index] + 500
    metrics = ratio_metrics(ratio_sums(log_probs, old, mask), np.float32(mask.sum()))
    assert all(np.isfinite(value) for value in metrics.values())
    log_probs[index] = np.nan
    assert np.isnan(ratio_metrics(ratio_sums(log_probs, old, mask), np.float32(mask.sum()))["policy/ratio"])
