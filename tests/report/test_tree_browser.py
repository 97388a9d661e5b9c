"""The page of search trees in a real browser: what it draws is the tree, quickly, in narrow windows too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from helpers.browser import find_chromium, started
from helpers.commands import mmeureka
from helpers.simulated_policy import draw_many, problem_of

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.prm.labels import training_set
from mmeureka_jax.prm.search import RolloutRequest, run_trees
from mmeureka_jax.prm.tree import Node, Rollout, Tree

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; `apt-get install chromium`"),
]
EVIL = "</script><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>\ud800"
WORDS = "so the sides of this triangle are equal and their sum is"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started(CHROMIUM, tmp_path_factory.mktemp("profile")) as one:
        one.resize(1300, 900)
        yield one
    assert one.faults == []


def longer(rollout: Rollout, name: str) -> Rollout:
    steps = enumerate(rollout.steps)
    return Rollout(tuple(f"{step} {WORDS} $x_{{{place}}}$ of {name} " * 2 for place, step in steps), rollout.right)


def long_rollouts(requests: Sequence[RolloutRequest]) -> list[list[Rollout]]:
    """Those of the simulated policy with different words in each step, as a model's are."""
    return [
        [longer(rollout, f"{request.node} {number}") for number, rollout in enumerate(rollouts)]
        for request, rollouts in zip(requests, draw_many(requests), strict=True)
    ]


@pytest.fixture(scope="module")
def trees() -> list[Tree]:
    return list(run_trees(map(problem_of, range(24)), long_rollouts, SearchConfig(), 24))


@pytest.fixture(scope="module")
def page(trees, tmp_path_factory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"), trees)


def write_page(folder: Path, trees: list[Tree]) -> Path:
    rows = "".join(tree.to_json() + "\n" for tree in trees).encode("utf-8", "backslashreplace")
    (folder / "trees.jsonl").write_bytes(rows)
    assert mmeureka("prm", "tree", folder / "trees.jsonl", "--output", folder / "page.html") == 0
    return folder / "page.html"


def show(browser, page: Path, tree: str = "") -> None:
    browser.open(page, f"tree={tree}" if tree else "")
    browser.run("ready.then(() => true)")


def texts(browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)")


def shown_value(value: float) -> str:
    digits = Decimal("0.001") if value < 0.0995 else Decimal("0.01")
    return str(int(value)) if value in (0, 1) else str(Decimal(value).quantize(digits, ROUND_HALF_UP))


def busiest(trees: list[Tree]) -> Tree:
    return max(trees, key=lambda tree: tree.rollouts)


def test_all_nodes_of_a_tree_can_be_opened(browser, page, trees):
    tree = busiest(trees)
    show(browser, page, tree.id)
    browser.run("document.querySelector('.bar button').click()")
    browser.run("document.querySelectorAll('.more > summary').forEach((one) => one.click())")
    browser.run("new Promise((done) => setTimeout(done, 300))")
    nodes = list(tree.root.walk())
    assert sorted(texts(browser, ".node > summary .value-chip")) == sorted(shown_value(node.value) for node in nodes)
    assert browser.run("document.querySelectorAll('.rollout').length") == tree.rollouts >= 1000
    leaves = sum(node.value == 1 and not node.rollouts and not node.children for node in nodes)
    assert len(texts(browser, ".marks .chip.good")) == leaves > 0
    browser.run("document.querySelectorAll('.bar button')[1].click()")
    assert browser.run("document.querySelectorAll('.node[open]').length") == 1


def test_a_path_shows_its_labels_and_its_nodes(browser, page, trees):
    tree = busiest(trees)
    examples, _ = training_set([tree])
    show(browser, page, tree.id)
    chips = "[...document.querySelectorAll('.path')].map((one) => [...one.querySelectorAll('.chip, .value-chip')]"
    assert browser.run(f"{chips}.map((chip) => chip.textContent))") == [
        ["negative" if example.is_negative else "positive", *map(shown_value, example.labels)] for example in examples
    ]
    for number in (0, len(examples) - 1):
        browser.run(f"document.querySelectorAll('.path > summary')[{number}].click()")
        browser.run("new Promise((done) => setTimeout(done, 300))")
        steps = texts(browser, f".path:nth-of-type({number + 1}) .step")
        assert len(steps) == len(examples[number].text.split("\n\n"))
        browser.run(f"document.querySelector('.path:nth-of-type({number + 1}) button').click()")
        labels = [shown_value(label) for label in examples[number].labels]
        assert texts(browser, ".onpath > summary .value-chip") == labels
        assert browser.run("[...document.querySelectorAll('.onpath')].every((one) => one.checkVisibility())")


def test_trees_are_chosen_from_the_list(browser, page, trees):
    show(browser, page)
    names = [tree.id for tree in trees]
    assert texts(browser, ".card .id") == names[:1]
    assert [text.split(" · ")[0] for text in texts(browser, ".pager option")] == names
    assert texts(browser, "#list tbody td:first-child") == names
    steps = [
        ("document.querySelector('.pager button:last-child').click()", names[1]),
        ("document.querySelectorAll('#list tbody button')[5].click()", names[5]),
        (
            "(() => { const one = document.querySelector('.pager select'); one.value = 9;"
            " one.dispatchEvent(new Event('change')); })()",
            names[9],
        ),
        (f"location.hash = 'tree={names[3]}'", names[3]),
    ]
    for action, name in steps:
        browser.run(action)
        browser.run("new Promise((done) => setTimeout(done, 300))")
        assert texts(browser, ".card .id") == [name] and browser.run("location.hash") == f"#tree={name}"


def test_hostile_text_is_shown_as_it_is(browser, tmp_path):
    root = Node.estimated((), [Rollout((EVIL, EVIL), True), Rollout((f"{EVIL} $x^2$",), False)])
    root.children.append(Node((f"{EVIL} $x^2$",), 0.0))
    show(browser, write_page(tmp_path, [Tree(EVIL, EVIL, EVIL, root, {EVIL: EVIL})]))
    browser.run("document.querySelector('.bar button').click()")
    browser.run("document.querySelectorAll('.more > summary').forEach((one) => one.click())")
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert set(texts(browser, ".step")) == {EVIL, f"{EVIL} x2"}
    assert texts(browser, ".ask .text, .id, .gold b") == [EVIL] * 3
    assert browser.run("document.querySelectorAll('img, #shown script').length") == 0
    assert browser.run("document.title") == "Search trees"


def test_many_rollouts_are_quick_and_the_file_is_small(browser, page, trees):
    assert sum(tree.rollouts for tree in trees) > 8_000
    assert page.stat().st_size < 0.3 * page.with_name("trees.jsonl").stat().st_size
    show(browser, page)
    assert browser.run("document.querySelectorAll('*').length") < 5000
    number = trees.index(busiest(trees))
    for action in (f"await go({number})", "document.querySelector('.bar button').click()"):
        timed = f"(async () => {{ const t = performance.now(); {action}; return performance.now() - t; }})()"
        assert browser.run(timed) < 3000, action


@pytest.mark.parametrize("width", [320, 400, 700])
def test_a_narrow_window_does_not_scroll_sideways(browser, page, trees, width):
    browser.resize(width, 800)
    try:
        show(browser, page, busiest(trees).id)
        browser.run("document.querySelector('.bar button').click()")
        browser.run("document.querySelector('.path > summary').click()")
        assert browser.run("document.documentElement.scrollWidth") <= width
        wider = "Math.max(...[...document.querySelectorAll('.card')].map((one) => one.scrollWidth - one.clientWidth))"
        assert browser.run(wider) <= 0
    finally:
        browser.resize(1300, 900)
