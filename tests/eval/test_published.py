"""The page of benchmarks has what their settings say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.commands import mmeureka

from mmeureka_jax.evaluation.benchmark import benchmark_names, open_benchmark

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "evaluation.md"


def published() -> list[str]:
    """The lines of the table of published scores."""
    lines = ["| benchmark | model | score | source | judged |", "| --- | --- | ---: | --- | --- |"]
    for name in benchmark_names():
        for one in open_benchmark(name).settings.published:
            lines.append(f"| `{name}` | {one.model} | {one.score:.1f} | {one.source} | {one.judge} |")
    return lines


def test_the_page_has_the_published_scores():
    _, _, rest = PAGE.read_text().partition("<!-- published: tests/eval/test_published.py -->\n")
    table, _, _ = rest.partition("\n<!-- end of published -->")
    assert table.splitlines() == published()


def test_the_page_has_every_benchmark_and_its_rows():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| \[([^]]+)\]\(\.\./eval/(\w+)/README\.md\) \|$", PAGE.read_text(), re.M
    )
    settings = {name: open_benchmark(name).settings for name in benchmark_names()}
    assert {name: (int(count.replace(",", "")), title) for name, count, title, _ in rows} == {
        name: (own.release.rows, own.title) for name, own in settings.items()
    }
    assert all(name == folder and (ROOT / "eval" / folder / "README.md").is_file() for name, _, _, folder in rows)


def test_the_suite_of_the_papers_asks_all(tmp_path, capsys):
    for name in benchmark_names():
        assert f"  {name}: " in (ROOT / "eval" / "papers.yaml").read_text()
    assert mmeureka("eval", "--judge-only", "--suite", "papers", "--files", tmp_path, "--output", tmp_path) == 2
    assert "MathVista: no such file, and no folder of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("benchmarks: {mmk12: {path: a, max_new_token: 5}}", "no such key; there are path, prompt_style"),
        ("benchmarks: {mmk12: {path: a, temperature: hot}}", "must be 0 or a positive number; got 'hot'"),
        ("benchmarks: {mmk12: {path: a, n: true}}", "must be a positive integer; got True"),
        ("benchmarks: {mmk12: a}", "benchmarks.mmk12: expected a path"),
        ("mmk12: {path: a}", "expected `benchmarks:` with a path for each"),
        ("benchmarks: {mmk12: {path: a", "not YAML"),
    ],
)
def test_a_broken_suite_is_refused_by_its_key(tmp_path, capsys, text, message):
    (tmp_path / "suite.yaml").write_text(text)
    assert mmeureka("eval", "--judge-only", "--suite", tmp_path / "suite.yaml", "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
