"""benchmarks/bandits.py: its curves against the closed forms, and that the command draws them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import bandits


def test_gradient_weights_are_the_closed_forms():
    ratios = bandits.RATIOS
    for advantage in (1.0, -1.0):
        weights = {name: bandits.gradient_weights(loss, advantage) for name, loss in bandits.LOSSES.items()}
        clipped = ratios > 1.2 if advantage > 0 else ratios < 0.8
        drift = 0.1 * np.minimum(ratios - 1, 2)
        expected = {
            "PPO-clip": np.where(clipped, 0, advantage * ratios),
            "PPO without clip": advantage * ratios,
            "PPO-clip, ratio cap 3": np.where(clipped | (ratios > 3), 0, advantage * ratios),
            "PG": np.full(ratios.shape, advantage),
            "CPG": np.where(clipped, 0, advantage),
            "CPGD": np.where(clipped, 0, advantage) - drift,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_one_step_moves_the_ratio_by_the_weight_times_the_slope():
    """To first order in the rate: d ratio = rate * ratio * weight * |grad l|^2, here (1 - p)^2 + (1 / p - 1) p^2."""
    p = 1 / bandits.ACTIONS
    slope = (1 - p) ** 2 + (bandits.ACTIONS - 1) * p**2
    ratios = np.asarray([0.9, 1.0, 1.1])
    for name, weight in (("PPO-clip", ratios), ("CPG", np.ones(3))):
        moved = bandits.ratio_after_step(bandits.LOSSES[name], 1.0, ratios) - ratios
        np.testing.assert_allclose(moved, bandits.RATE * ratios * weight * slope, rtol=0.1)


@pytest.mark.slow
def test_the_command_draws_and_prints(tmp_path, capsys):
    assert bandits.main(["--out", str(tmp_path)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (tmp_path / "bandits.svg").read_text().count("<svg") == 1
    improvement = numbers["improvement"]
    assert improvement["bandits"] > 150 and improvement["smallest_margin"] >= 0
    assert improvement["smallest_gain_over_bound"] > 1
    steps = {name.removeprefix("steps_"): value for name, value in numbers.items() if name.startswith("steps_")}
    assert steps["PPO without clip"]["ratio_median"] > steps["PPO-clip"]["ratio_median"] > 1
    assert all(0 < value["chance_end"] <= value["chance_best"] < 1 for value in steps.values())
