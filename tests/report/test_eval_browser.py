"""The pages of evaluations in a real browser: no faults in its console, filters, speed, narrow windows."""

from __future__ import annotations

import html
import json
import re
from urllib.parse import urlencode

import pytest
from helpers.browser import find_chromium, started
from helpers.judged import judged, release, renamed, write_folder

from mmeureka_jax.evaluation.comparing import compare
from mmeureka_jax.evaluation.judging import results_of
from mmeureka_jax.evaluation.pages import Judged
from mmeureka_jax.report.formulas import answer_to_html, text_to_html

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; `apt-get install chromium`"),
]
EVIL = "</script><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>\ud800"
ROWS = 3000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started(CHROMIUM, tmp_path_factory.mktemp("profile")) as one:
        one.resize(1300, 900)
        yield one
    assert one.faults == []


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page of as many answers as the large benchmarks have, of 6 kB each, and the rows."""
    folder = tmp_path_factory.mktemp("large")
    thought = "Let the side be $x$, so that the area is $x^2$. " * 120
    one = judged(
        release(folder / "release", ROWS), response=f"<think>{thought} of {{0}}.</think><answer>{EVIL}</answer>"
    )
    return write_folder(folder / "out", [one]), one.rows


def found(browser) -> int:
    return int(browser.run("document.querySelector('.found').textContent").split(" of ")[0].replace(",", ""))


def choose(browser, name: str, value: str) -> None:
    """Fills in a field as a user does, and waits until the page has followed."""
    browser.run(
        f"""new Promise((done) => {{
            const field = document.querySelector(`form [name="{name}"]`);
            field.value = {value!r};
            field.dispatchEvent(new Event("input", {{bubbles: true}}));
            setTimeout(done, 400);
        }})"""
    )


FILTERS = [
    ({}, lambda row: True),
    ({"official": "wrong"}, lambda row: not row["official"]),
    ({"ours": "right"}, lambda row: row["ours"]),
    ({"judges": "disagree"}, lambda row: row["official"] != row["ours"]),
    ({"unparsed": "yes"}, lambda row: row["extracted"] is None),
    ({"truncated": "yes"}, lambda row: row["truncated"]),
    ({"reason": "yes"}, lambda row: row["reason"] is not None),
    ({"group.subject": "physics"}, lambda row: row["groups"] == {"subject": ["physics"]}),
    ({"q": "OF P12"}, lambda row: row["id"].startswith("p12")),
    ({"group.subject": "math", "truncated": "no", "q": "side 7"}, lambda row: (
        row["groups"] == {"subject": ["math"]} and not row["truncated"] and row["id"].startswith("p7"))),
    ({"q": "nowhere at all"}, lambda row: False),
]  # fmt: skip


@pytest.mark.parametrize("filters, wanted", FILTERS, ids=[urlencode(filters) or "none" for filters, _ in FILTERS])
def test_filters_find_what_a_recount_finds(browser, large, filters, wanted):
    page, rows = large
    expected = sum(bool(wanted(row)) for row in rows)
    browser.open(page, urlencode(filters))
    assert found(browser) == expected
    assert browser.run("document.querySelectorAll('.card').length") == min(10, expected)
    browser.open(page)
    for name, value in filters.items():
        choose(browser, name, value)
    assert found(browser) == expected
    assert browser.run("location.hash.slice(1)") == urlencode(filters)


def test_pages_go_through_all_answers(browser, large):
    page, rows = large
    browser.open(page, "truncated=yes")
    names = [row["id"] for row in rows if row["truncated"]]
    seen = []
    while True:
        seen += browser.run("[...document.querySelectorAll('.card .id')].map((one) => one.textContent.split(' · ')[0])")
        if browser.run("document.querySelector('.pager button:last-child').disabled"):
            break
        browser.run("document.querySelector('.pager button:last-child').click()")
    assert seen == names
    browser.run("document.querySelector('.pager button').click()")  # clears the filters
    assert found(browser) == ROWS and browser.run("location.hash") == ""


def test_hostile_answers_are_shown_as_they_are(browser, large):
    page, _ = large
    browser.open(page)
    shown = browser.run("document.querySelector('.card .answer .text').textContent")
    assert shown == EVIL
    assert browser.run("document.title").startswith("Benchmarks")
    assert browser.run("document.querySelectorAll('img[onerror]').length") == 0
    assert browser.run("document.querySelector('.card details.thought').open") is False
    assert browser.run("document.querySelector('.card img').naturalWidth") == 40


def test_formulas_are_drawn_where_they_are_looked_at(browser, tmp_path):
    asked = release(tmp_path / "rows", 3, r"What is $\sqrt{{{}}}$ of $<img src=x onerror=alert(1)>$?")
    answers = judged(
        asked, response=r"<think>\(a_1\) then $$\frac{a}{2}$$</think><answer>\frac{a}{3}, $5 or $6</answer>"
    )
    browser.open(write_folder(tmp_path, [answers]))
    assert browser.run("document.querySelectorAll('.card .ask msqrt').length") == 3
    assert browser.run("document.querySelectorAll('.card mfrac').length") == 0  # in a folded thought, or no formula
    assert "$5 or $6" in browser.run("document.querySelector('.card .answer').textContent")
    browser.run("document.querySelector('.card details.thought').open = true")
    drawn = browser.run(
        "new Promise((done) => setTimeout(() => done(document.querySelectorAll('.card mfrac').length), 100))"
    )
    assert drawn == 1 and browser.run("document.querySelectorAll('img[onerror]').length") == 0
    choose(browser, "formulas", "source")
    assert browser.run("document.querySelectorAll('math').length") == 0
    assert r"What is $\sqrt{0}$ of" in browser.run("document.querySelector('.card .ask .text').textContent")


TEXTS = [
    "it costs $5 and $10, so $x^2$ is",
    "one\n$$x$$ \ntwo",
    r"a \(x\) b \[y\] c \$z$",
    r"so $ \frac{1}{2} $ and $ 5 of $y$",
    r"$\unknown{x}$ and $x = \boxed{5}$ or \boxed{\frac{1}{\sqrt{2}}} or \boxed{6",
    "so\n\\begin{align} a&=b\\\\ c&=d \\end{align}\nand",
    "$x$5, $x$٥, 😀$x$\ud800",
    "$a<b$ " * 3 + "x^2",
]


def test_the_script_and_the_report_agree_on_formulas(browser, tmp_path):
    golds = ["constructor", "__proto__", r"\frac{1}{2}", "x^2", "5", "a_1 + b_{2} + " * 20 + "c", "$x$ m", "file_name"]
    one = judged(release(tmp_path / "release", len(TEXTS)), response="$5$")
    for row, question, answer in zip(one.rows, TEXTS, golds, strict=True):
        row |= {"question": question, "answer": answer}
    page = write_folder(tmp_path / "out", [one])
    for draw, given, selector in ((text_to_html, TEXTS, ".ask .text"), (answer_to_html, golds, ".gold b")):
        browser.open(page)
        shown = browser.run(
            f"""[...document.querySelectorAll({selector!r})].map((one) => [...one.childNodes].map((node) =>
                node.nodeType === 3 ? node.data : `[${{node.className}} ${{node.textContent}}]`).join(""))"""
        )
        marked = (re.sub(r'<span class="(.*?)".*?>(.*?)</span>', r"[\1 \2]", draw(text)) for text in given)
        assert shown == [html.unescape(re.sub("<[^>]*>", "", text)) for text in marked]
    browser.resize(390, 800)
    try:
        assert browser.run("document.documentElement.scrollWidth") <= 390  # though a gold answer is wide
    finally:
        browser.resize(1300, 900)


def test_texts_that_are_almost_formulas_take_no_time(browser, large):
    browser.open(large[0])
    for piece in (r"\[", "$$", "$a", r"\(", r"$\frac", "$ ", r"\boxed{", r"\boxed{{{x}}", r"\begin{cases}", "\\"):
        milliseconds = browser.run(
            f"(() => {{ const t = performance.now(); drawText({json.dumps(piece)}.repeat(20000));"
            " return performance.now() - t; })()"
        )
        assert milliseconds < 3000, piece


def test_thousands_of_rows_are_quick(browser, large):
    page, _ = large
    browser.open(page)
    assert browser.run("performance.timing.loadEventEnd - performance.timing.navigationStart") < 5000
    assert browser.run("document.querySelectorAll('*').length") < 1500
    for change in ("state.set('official', 'wrong')", "state.set('q', 'of p29')", "state.set('q', 'nothing')"):
        milliseconds = browser.run(
            f"(() => {{ const t = performance.now(); {change}; show(); return performance.now() - t; }})()"
        )
        assert milliseconds < 1000, change


@pytest.mark.parametrize("width", [320, 390, 700])
def test_a_narrow_window_does_not_scroll_sideways(browser, large, width, tmp_path):
    browser.resize(width, 800)
    try:
        browser.open(large[0], "official=wrong")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert (
            browser.run(
                "Math.max(...[...document.querySelectorAll('.card')].map((one) => one.scrollWidth - one.clientWidth))"
            )
            <= 0
        )
    finally:
        browser.resize(1300, 900)


def test_links_of_the_comparison_show_what_changed(browser, tmp_path):
    released = release(tmp_path / "release", 60)
    for name, skill in (("a", 0.3), ("b", 0.8)):
        write_folder(tmp_path / name, [judged(released, skill=skill, seed=ord(name))])
    (counted,) = compare(tmp_path / "a", tmp_path / "b", tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    changed = sum(any(problem.change) for problem in counted.problems)
    assert found(browser) == changed
    for judge in ("official", "ours"):
        for change, direction in (("better", 1), ("worse", -1)):
            link = f"a[href$='change={change}-{judge}']"
            browser.run(
                f"new Promise((done) => {{ document.querySelector(`{link}`).click(); setTimeout(done, 300); }})"
            )
            assert found(browser) == counted.changed(judge, direction)
    assert browser.run("document.querySelectorAll('.card')[0].querySelectorAll('.sides .response').length") == 2
    choose(browser, "change", "all")
    assert found(browser) == 60


def test_a_judge_model_is_a_third_judge(browser, tmp_path):
    one = judged(release(tmp_path / "release", 40))
    rows = [{**row, "model": int(number % 3 == 0)} for number, row in enumerate(one.rows)]
    page = write_folder(tmp_path / "out", [Judged(one.released, rows, results_of(one.released, rows))])
    browser.open(page)
    names = "[...document.querySelectorAll('form [name]')].map((one) => one.name).slice(1, 4)"
    assert browser.run(names) == ["official", "ours", "model"]
    choose(browser, "model", "right")
    assert found(browser) == sum(row["model"] for row in rows)
    choose(browser, "judges", "disagree")
    differing = [row for row in rows if len({row[judge] for judge in ("official", "ours", "model")}) > 1]
    assert found(browser) == sum(row["model"] for row in differing)
    chips = [
        chip for chip in browser.run("[...document.querySelectorAll('.card .chip')].map((one) => one.textContent)")
    ]
    assert chips.count("model: right") == chips.count("the judges disagree") == min(10, found(browser))
    browser.run(
        "new Promise((done) => { document.querySelector(`a[href*='model=right']`).click(); setTimeout(done, 300); })"
    )
    assert found(browser) == sum((row["official"], row["ours"], row["model"]) == (0, 0, 1) for row in rows)


def test_each_benchmark_has_its_own_filters(browser, tmp_path):
    released = release(tmp_path / "release", 30)
    other = renamed(release(tmp_path / "other", 12), "other", EVIL[:-1])
    page = write_folder(tmp_path / "out", [judged(released), judged(other, samples=2)])
    browser.open(page)
    names = "[...document.querySelectorAll('form [name]')].map((one) => one.name)"
    assert found(browser) == 54 and "group.subject" not in browser.run(names)
    choose(browser, "benchmark", "other")
    assert found(browser) == 24 and "group.subject" in browser.run(names)
    choose(browser, "group.subject", "math")
    assert found(browser) == 8
    assert browser.run("document.querySelector('.card .n').textContent") == "Answer 1"
    assert browser.run("document.querySelector('.card .id').textContent") == f"{EVIL[:-1]} · p0 · math"
    choose(browser, "benchmark", "mmk12")
    assert found(browser) == 30


def test_both_schemes_have_their_colours(browser, large):
    colours = []
    for dark in (False, True):
        browser.resize(1300, 900, dark=dark)
        browser.open(large[0])
        colours.append(browser.run("getComputedStyle(document.querySelector('.card')).backgroundColor"))
    browser.resize(1300, 900)
    assert colours == ["rgb(255, 255, 255)", "rgb(28, 34, 41)"]
