"""The reference of keys, commands and metrics is what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from mmeureka_jax.report.charts import CHART_GROUPS
from mmeureka_jax.runs.metrics import METRICS, metric_of

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
GENERATE = runpy.run_path(str(FOLDER.parent / "generate.py"))


def test_the_pages_are_those_of_the_code():
    stored = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert stored == GENERATE["pages"](), "run `make reference` and commit docs/reference/"


@pytest.mark.parametrize("section", GENERATE["descriptions"]())
def test_each_key_has_one_description(section):
    described = GENERATE["descriptions"]()[section]
    assert {name: comments for name, comments in described.items() if len(comments) != 1} == {}


def test_each_metric_is_described_once():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert [name for name in names if metric_of(name).name != name] == []


def test_each_metric_of_the_report_is_described():
    drawn = {
        name for charts in CHART_GROUPS.values() for chart in charts for panel in chart.panels for name in panel.series
    }
    assert {name for name in drawn if metric_of(name) is None} == set()


@pytest.mark.parametrize(
    ("logged", "name"),
    [
        ("reward/pass_at_16", "reward/pass_at_K"),
        ("optimizer/grad_norm", "optimizer/grad_norm"),
        ("optimizer/grad_norm/language/layers", "optimizer/grad_norm/MODULE"),
    ],
)
def test_a_part_in_capitals_is_filled_in(logged, name):
    assert metric_of(logged).name == name


def test_a_metric_without_a_line_is_not_described():
    assert metric_of("reward/x") is None and metric_of("policy/entropy/x") is None
