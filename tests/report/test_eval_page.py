"""The page of an evaluation: what is in it equals the rows, and nothing that a model wrote is markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import io
import re
from html.parser import HTMLParser

import pytest
from helpers.commands import mmeureka, read_rows, write_rows
from helpers.judged import judged, release, renamed, write_folder
from PIL import Image

from mmeureka_jax.evaluation import pages
from mmeureka_jax.report import formula_table
from mmeureka_jax.report.answer_browser import pictures_of, read_element, to_element_text
from mmeureka_jax.report.eval_page import plot
from mmeureka_jax.report.thumbnails import to_data_uri, to_jpeg_uri

EVIL = "</script><script>alert(1)</script><!--<script><img src=x onerror=alert(2)>\"'&amp;\ud800\u2028\0\r\n$title${x}"
KEYS = ("sample", "official", "ours", "truncated", "extracted", "reason", "response")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return release(tmp_path_factory.mktemp("release"), 60)


def answers_in(page: str) -> list[dict]:
    (benchmark,) = read_element(page, "data")["benchmarks"]
    rows = []
    for problem, side, *values in benchmark["answers"]:
        name, question, gold, groups, *_ = benchmark["problems"][problem]
        named = zip(benchmark["breakdowns"], groups, strict=True)
        rows.append(
            {
                "id": name,
                **dict(zip(KEYS, values, strict=True)),
                "question": question,
                "answer": gold,
                "groups": {breakdown: [own[place] for place in places] for (breakdown, own), places in named},
                "side": side,
            }
        )
    return rows


@pytest.mark.parametrize("samples", [1, 3])
def test_the_data_of_the_page_are_the_rows(small, tmp_path, samples):
    one = judged(small, samples=samples)
    page = write_folder(tmp_path, [one]).read_text()
    expected = [{**row, "side": 0} for row in one.rows]
    for row in expected:
        assert row.pop("overall") is True
    assert answers_in(page) == expected
    assert read_element(page, "data")["benchmarks"][0]["samples"] == samples


def test_scores_are_beside_published_ones(small, tmp_path):
    one = judged(small, samples=2)
    page = write_folder(tmp_path, [one]).read_text()
    low, high = (f"{100 * end:.1f}" for end in one.results["intervals"]["ours"])
    assert f'by ours</th><td class="number">{100 * one.results["ours"]:.1f}</td>' in page
    assert f"{low}–{high}" in page
    for published in small.benchmark.settings.published:
        assert html.escape(published.model) in page and html.escape(published.source) in page
    for value, scores in one.results["breakdowns"]["subject"].items():
        cells = "".join(f'<td class="number">{100 * scores[judge]:.1f}</td>' for judge in ("official", "ours"))
        assert f'<th scope="row">{value}</th><td class="number">{scores["count"]}</td>{cells}' in page
    assert "a part of the release" in page and "pass@2" in page and "majority vote" in page
    assert f"judged differently {one.results['disagreements']}" in page
    assert "Benchmarks of model 0" in page


def test_a_breakdown_of_many_values_is_folded(small, tmp_path):
    one = judged(small)
    scores = {"official": 0.5, "ours": 0.5, "count": 2}
    breakdowns = {"few": {str(i): scores for i in range(24)}, "many": {str(i): scores for i in range(25)}}
    page = write_folder(
        tmp_path, [dataclasses.replace(one, results=one.results | {"breakdowns": breakdowns})]
    ).read_text()
    assert "<summary>many<span>25 values</span></summary>" in page and "<summary>few" not in page


def test_a_whole_release_has_no_mark(small, tmp_path):
    one = judged(small)
    whole = {key: value for key, value in one.results.items() if key != "partial"}
    assert "a part of the release" not in write_folder(tmp_path, [dataclasses.replace(one, results=whole)]).read_text()


class Elements(HTMLParser):
    """Counts the elements of a page."""

    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_hostile_text_stays_text(tmp_path):
    quiet = judged(release(tmp_path / "quiet", 12))
    evil = judged(release(tmp_path / "evil", 12, EVIL.replace("{x}", "") + "{}"), response=EVIL)
    for row in evil.rows:
        row |= {"extracted": EVIL, "reason": EVIL, "answer": EVIL, "groups": {"subject": [EVIL]}}
    breakdowns = {EVIL: {EVIL: {"official": 1.0, "ours": 0.5, "count": 3}}}
    results = evil.results | {"breakdowns": breakdowns, "figures": {"official": {EVIL: 1.0}, "ours": {EVIL: 2.5}}}
    results |= {"settings": {"model": EVIL, EVIL: [EVIL]}}
    pages_of = {}
    for name, one in (("quiet", quiet), ("evil", dataclasses.replace(evil, results=results))):
        pages_of[name] = write_folder(tmp_path / "out" / name, [one]).read_text()
    assert [row["response"] for row in answers_in(pages_of["evil"])] == [EVIL] * 12
    assert {row["reason"] for row in answers_in(pages_of["evil"])} == {EVIL}
    found = {}
    for name, page in pages_of.items():
        parser = Elements()
        parser.feed(page)
        found[name] = [attributes for tag, attributes in parser.tags if tag == "script"]
        assert not [tag for tag, attributes in parser.tags if tag == "img" or "onerror" in attributes]
        assert all(
            attributes.get("href", "#").startswith("#") and "src" not in attributes for _, attributes in parser.tags
        )
    assert found["evil"] == found["quiet"] and len(found["evil"]) == 4


def test_only_the_pages_own_script_may_run(small, tmp_path):
    page = write_folder(tmp_path, [judged(small)]).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "innerHTML" not in script and "eval(" not in script


def test_text_of_an_element():
    value = [EVIL, "é漢😀", None, 1.5, {"a": "<"}]
    text = to_element_text(value)
    assert "<" not in text and read_element(f'<script type="application/json" id="x">{text}</script>', "x") == value
    text.encode()
    with pytest.raises(ValueError):
        to_element_text(float("nan"))


def test_pictures_have_a_budget(small, tmp_path, monkeypatch):
    one = judged(small)
    whole = pictures_of(write_folder(tmp_path / "whole", [one]).read_text())
    assert all(own[0].startswith("data:image/jpeg;base64,") for own in whole.values())
    budget = sum(len(own[0]) for own in whole.values()) // 3
    monkeypatch.setattr(pages, "PICTURE_CHARACTERS", budget)
    page = write_folder(tmp_path / "part", [one]).read_text()
    part = pictures_of(page)
    shown = {name for (_, name), own in part.items() if own[0]}
    assert sum(map(len, read_element(page, "pictures"))) <= budget
    assert 15 < len(shown) < 25 and f"has the pictures of {len(shown)} of 60 problems" in page
    assert all(own[0] in ("", whole[key][0]) for key, own in part.items())
    wrong = {row["id"] for row in one.rows if not (row["official"] and row["ours"])}
    assert shown <= wrong


def test_a_shared_picture_is_there_once_and_a_broken_one_is_said(small, tmp_path):
    folder = tmp_path / "release"
    released = release(folder, 4)
    for i in (1, 2):
        Image.new("RGB", (30, 30), "red").save(folder / f"{i}.png")
    rows = [dataclasses.replace(row, columns={**row.columns}) for row in released.rows]
    rows[1].columns["image"] = rows[2].columns["image"] = "1.png"
    rows[3].columns["image"] = "nowhere.png"
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    page = write_folder(tmp_path / "out", [judged(dataclasses.replace(released, rows=rows))]).read_text()
    own = list(pictures_of(page).values())
    assert len(read_element(page, "pictures")) == 1
    assert own == [[None], own[1], own[1], [None]] and own[1][0]


def test_two_benchmarks_share_the_page(small, tmp_path):
    other = judged(renamed(small, "other", "Other <b>"))
    page = write_folder(tmp_path, [judged(small), other]).read_text()
    assert [one["name"] for one in read_element(page, "data")["benchmarks"]] == ["mmk12", "other"]
    assert re.findall(r'<h2 id="[^"]*">([^<]*)</h2>', page) == ["MMK12 (test)", "Other &lt;b&gt;", "Answers"]
    assert [one["title"] for one in read_element(page, "data")["benchmarks"]] == ["MMK12 (test)", "Other <b>"]
    assert page.count("Other <b>") == 0 and "MMK12 (test) · Other &lt;b&gt;" in page


def test_thumbnails_are_small():
    picture = Image.effect_noise((900, 600), 80).convert("RGB")
    for address in (to_data_uri(picture, 90), to_jpeg_uri(picture, 90, 75)):
        shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert shown.size == (90, 60)
    assert picture.size == (900, 600)


def test_plots_have_a_bar_for_each_number():
    drawn = plot([(0.25, "red"), (0.5, "blue")], [None, (0.4, 0.6)], mark=0.3)
    assert re.findall(r'width="([\d.]+)" height="5.00" fill="(\w+)"', drawn) == [("25.00", "red"), ("50.00", "blue")]
    assert 'x1="40.00"' in drawn and 'x2="60.00"' in drawn and 'x1="30.00"' in drawn


@pytest.mark.slow
def test_judged_answers_of_others_have_a_page(tmp_path, capsys):
    release(tmp_path / "release", 8)
    answers = [{"id": f"p{i}", "response": "<answer>A</answer>" if i else EVIL} for i in range(8)]
    file = write_rows(tmp_path / "answers.jsonl", answers)
    given = ("--benchmark", f"mmk12={tmp_path / 'release'}", "--answers", file, "--output", tmp_path / "out")
    assert mmeureka("eval", "judge", "--partial", *given) == 0
    assert f"page: {tmp_path / 'out' / 'eval.html'}" in capsys.readouterr().out
    rows = read_rows(tmp_path / "out/mmk12.jsonl")
    assert [(row["id"], row["response"]) for row in rows] == [(row["id"], row["response"]) for row in answers]
    assert [row["ours"] for row in rows] == [0, 0, 0, 0, 1, 0, 0, 0]
    page = (tmp_path / "out/eval.html").read_text()
    assert [row["ours"] for row in answers_in(page)] == [row["ours"] for row in rows]
    assert "answers.jsonl" in page and "eval.mmk12.official:judge" in page


MATHS = r"<think>so $x^2$ and $$\frac{a}{2}$$, not $<script>$, \href{javascript:alert(1)}{$y$}</think>\[x^2\] $\bad{x}$"


def test_formulas_are_trees_of_known_elements(tmp_path, monkeypatch):
    one = judged(
        release(tmp_path / "rows", 4, r"What is $\sqrt{{x}}$ of {}?"),
        response=MATHS,
    )
    page = write_folder(tmp_path, [one]).read_text()
    trees = read_element(page, "formulas")["trees"]
    assert list(trees) == [r"$\sqrt{x}$", "$x^2$", r"$$\frac{a}{2}$$", "$<script>$", "$y$", r"\[x^2\]"]
    assert trees["$x^2$"][0] == "math" and ["msup", ["mi", "x"], ["mn", "2"]] in trees["$x^2$"][-1]
    names = set(re.findall(r'\["(\w+)"', str(trees).replace("'", '"')))
    assert names >= {"math", "mfrac", "msqrt"} and not names & {"script", "a", "img"}
    assert [row["response"] for row in answers_in(page)] == [MATHS] * 4
    size = sum(len(source) + len(to_element_text(tree)) for source, tree in list(trees.items())[:3])
    for name, limit in (("MAX_FORMULAS", 3), ("MAX_CHARACTERS", size + 1)):
        with monkeypatch.context() as patch:
            patch.setattr(formula_table, name, limit)
            page = write_folder(tmp_path, [one]).read_text()
        assert list(read_element(page, "formulas")["trees"]) == list(trees)[:3]
        assert "4 formulas, of those that occur least often, are shown as they are written" in page
