"""Mean and spread over runs, and the numbers of the tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmeureka_jax.errors import UserError
from mmeureka_jax.report.comparison import Run, mean_and_spread, parse_summary, reduce, write_comparison


def rows(*values, metric="x"):
    return [{"step": step, metric: value} for step, value in enumerate(values)]


def test_mean_and_spread_are_over_the_runs_that_have_a_value():
    runs = [rows(1.0, 2.0, 3.0), rows(3.0, 6.0), rows(2.0, float("nan"), 5.0)]
    steps, mean, spread = mean_and_spread(runs, "x")
    np.testing.assert_array_equal(steps, [0, 1, 2])
    np.testing.assert_allclose(mean, [2, 4, 4])
    np.testing.assert_allclose(spread, [1, np.std([2, 6], ddof=1), np.std([3, 5], ddof=1)])


def test_reducers():
    series = rows(*range(40), None)
    expected = {"first": 0, "last": 39, "end": 37.5, "max": 39, "min": 0, "mean": 19.5}
    assert {name: reduce(series, name, "x") for name in expected} == expected
    assert reduce(series, "last", "y") is None
    with pytest.raises(UserError, match="'median x': expected one of first, last"):
        parse_summary("median x")
    with pytest.raises(UserError, match="'last'"):
        parse_summary("last")


def test_names_are_escaped_and_long_series_drawn(tmp_path):
    walk = np.random.default_rng(0).normal(size=(3, 700)).cumsum(1)
    runs = [
        Run(f"<kind {i % 2}>|", f"seed {i}", rows(*walk[i].tolist(), metric="reward/accuracy"), "done")
        for i in range(3)
    ]
    page = write_comparison(runs, tmp_path, title="<b>", summary=["last reward/accuracy"]).read_text()
    assert "<kind" not in page and "&lt;kind 0&gt;|" in page and "<title>&lt;b&gt;</title>" in page
    picture = (tmp_path / "comparison.svg").read_text()
    assert picture.count("<svg") == 1 and "reward/accuracy" in picture
    table = (tmp_path / "summary.md").read_text()
    assert "| <kind 1>\\| | 1 |" in table
    assert (tmp_path / "summary.csv").read_text().count("\n") == 3


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(UserError, match="mine: no run has logged a step yet"):
        write_comparison([Run("a", "b", [], "not begun")], tmp_path, title="mine")
    write_comparison(
        [Run("a", "b", [], "not begun")] + [Run("c", "d", rows(math.inf, 1.0), "done")],
        tmp_path,
        title="mine",
        metrics=["x"],
    )
