"""Two evaluations side by side: counts equal a plain recount, and folders that do not go together are refused."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from helpers.commands import mmeureka, read_rows
from helpers.judged import judged, release, write_folder

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.comparing import compare
from mmeureka_jax.evaluation.intervals import LEVEL, RESAMPLES
from mmeureka_jax.report.answer_browser import pictures_of, read_element

JUDGES = ("official", "ours")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two evaluations of one release, with one and with two answers to each problem."""
    folder = tmp_path_factory.mktemp("compared")
    released = release(folder / "release", 80)
    write_folder(folder / "a", [judged(released, skill=0.4, seed=1)])
    write_folder(folder / "b", [judged(released, skill=0.7, seed=2, samples=2)])
    return folder / "a", folder / "b"


def shares(folder, judge: str) -> dict[str, float]:
    found: dict[str, list[int]] = {}
    for row in read_rows(folder / "mmk12.jsonl"):
        found.setdefault(row["id"], []).append(row[judge])
    return {name: sum(own) / len(own) for name, own in found.items()}


def test_counts_equal_a_plain_recount(folders, tmp_path, capsys):
    (found,) = compare(*folders, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    (benchmark,) = read_element(page, "data")["benchmarks"]
    for place, judge in enumerate(JUDGES):
        first, second = (shares(folder, judge) for folder in folders)
        better = {name for name in first if second[name] > first[name]}
        worse = {name for name in first if second[name] < first[name]}
        assert len(better) > 10 and len(worse) > 5
        assert (found.changed(judge, 1), found.changed(judge, -1)) == (len(better), len(worse))
        changes = {problem[0]: problem[5][place] for problem in benchmark["problems"]}
        assert changes == {name: (name in better) - (name in worse) for name in first}
        for change, names in (("better", better), ("worse", worse)):
            assert f'change={change}-{judge}">{len(names)}</a>' in page
        one = found.overall[judge]
        results = [json.loads((folder / "results.json").read_text())["benchmarks"]["mmk12"] for folder in folders]
        np.testing.assert_allclose([one.first, one.second], [own[judge] for own in results])
        assert one.count == 80
        for value, scores in results[0]["breakdowns"]["subject"].items():
            own = found.breakdowns["subject"][value][judge]
            other = results[1]["breakdowns"]["subject"][value]
            np.testing.assert_allclose(
                [own.first, own.second, own.count], [scores[judge], other[judge], other["count"]]
            )
    assert mmeureka("eval", "compare", *folders, "--output", tmp_path / "again.html") == 0
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert f"{found.changed('ours', 1)} better, {found.changed('ours', -1)} worse" in capsys.readouterr().out


def test_the_interval_is_over_pairs(folders, tmp_path):
    (found,) = compare(*folders, tmp_path / "page.html")
    for judge in JUDGES:
        first, second = (shares(folder, judge) for folder in folders)
        groups = {row["id"]: row["groups"]["subject"] for row in read_rows(folders[0] / "mmk12.jsonl")}
        for names, one in (
            (list(first), found.overall[judge]),
            ([name for name in first if groups[name] == ["math"]], found.breakdowns["subject"]["math"][judge]),
        ):
            differences = np.array([second[name] - first[name] for name in names])
            means = [
                np.random.default_rng((7, i)).choice(differences, len(differences)).mean() for i in range(RESAMPLES)
            ]
            expected = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            np.testing.assert_allclose(one.interval, expected, atol=0.3 * differences.std() / len(names) ** 0.5)
            assert one.interval[0] < one.difference < one.interval[1]


def test_both_answers_and_the_pictures_are_there(folders, tmp_path):
    compare(*folders, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    data = read_element(page, "data")
    assert data["sides"] == [f"A: {folders[0]}", f"B: {folders[1]}"]
    (benchmark,) = data["benchmarks"]
    for side, folder in enumerate(folders):
        own = [(benchmark["problems"][row[0]][0], row[2], row[-1]) for row in benchmark["answers"] if row[1] == side]
        assert own == [(row["id"], row["sample"], row["response"]) for row in read_rows(folder / "mmk12.jsonl")]
    assert pictures_of(page) == pictures_of((folders[0] / "eval.html").read_text())
    settings = re.search(r"<summary>Settings that differ.*?</details>", page, re.DOTALL)[0]
    assert "<td>model 1</td><td>model 2</td>" in settings and "official" not in settings


def test_rows_outside_the_overall_score_stay_out_of_it(tmp_path):
    released = release(tmp_path / "release", 30)

    class Other(type(released.benchmark)):
        settings = released.benchmark.settings

        def counts_overall(self, row):
            return row["subject"] != "math"

    released = dataclasses.replace(released, benchmark=Other())
    for seed, name in enumerate("ab"):
        write_folder(tmp_path / name, [judged(released, seed=seed)])
    (found,) = compare(tmp_path / "a", tmp_path / "b", tmp_path / "page.html")
    for side, name in (("first", "a"), ("second", "b")):
        results = json.loads((tmp_path / name / "results.json").read_text())["benchmarks"]["mmk12"]
        assert results["count"] == found.overall["ours"].count == 20
        assert getattr(found.overall["ours"], side) == pytest.approx(results["ours"])
    assert found.breakdowns["subject"]["math"]["ours"].count == 10


def test_names_of_folders_are_escaped(folders, tmp_path):
    named = tmp_path / "<i>a&b"
    named.symlink_to(folders[0])
    compare(named, folders[1], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<i>" not in page and "/&lt;i&gt;a&amp;b" in page
    assert read_element(page, "data")["sides"][0] == f"A: {named}"


def test_a_folder_without_its_page_has_no_pictures(folders, tmp_path):
    for name, folder in zip("ab", folders, strict=True):
        (tmp_path / name).mkdir()
        for file in ("results.json", "mmk12.jsonl"):
            (tmp_path / name / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "a/eval.html").write_text("an older page")
    compare(tmp_path / "a", tmp_path / "b", tmp_path / "page.html")
    assert set(map(tuple, pictures_of((tmp_path / "page.html").read_text()).values())) == {()}


def test_what_does_not_go_together_is_refused(folders, tmp_path, capsys):
    first, second = folders
    page = tmp_path / "page.html"

    def changed(name: str, change=lambda row: row, results=None):
        folder = tmp_path / name
        folder.mkdir()
        content = json.loads((second / "results.json").read_text()) if results is None else results
        (folder / "results.json").write_text(json.dumps(content))
        rows = [new for row in read_rows(second / "mmk12.jsonl") if (new := change(row)) is not None]
        (folder / "mmk12.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def without(row, name):
        return None if row["id"] == name else row

    def renamed(row):
        return row | ({"id": "q5"} if row["id"] == "p5" else {})

    def bare(row):
        return {key: value for key, value in row.items() if key != "response"}

    others = {"benchmarks": {"k12": {}}}
    cases = {
        "nowhere/results.json: no such file": tmp_path / "nowhere",
        "no results of benchmarks in it": changed("accuracy", results={"accuracy": 0.5}),
        "no benchmark in common: mmk12 in the first, k12 in the second": changed("k12", results=others),
        r"different rows: 1 only in .*a \(p3\)": changed("less", lambda row: without(row, "p3")),
        r"different rows: 1 only in .*a \(p5\); 1 only in .*other \(q5\)": changed("other", renamed),
        "same ids but not the same answer: p0, p1, p2, p3, p4, ...": changed("gold", lambda row: row | {"answer": "7"}),
        "not the same question: p0, p1, p2, p3, p4, ...": changed("asked", lambda row: row | {"question": "?"}),
        "mmk12.jsonl:1: it has no response; judge the answers again": changed("bare", bare),
        "no answers in it": changed("empty", lambda row: None),
    }
    (changed("torn") / "mmk12.jsonl").write_text('{"id": "p0"')
    for message, folder in (cases | {"mmk12.jsonl:1: not valid JSON": tmp_path / "torn"}).items():
        with pytest.raises(UserError, match=message):
            compare(first, folder, page)
    assert mmeureka("eval", "compare", first, tmp_path / "less", "--output", page) == 2
    assert "mmk12: the answers are to different rows" in capsys.readouterr().err
    assert not page.exists()
