"""The page of search trees: what is in it equals the trees, and nothing that a model wrote is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.commands import mmeureka
from helpers.simulated_policy import draw_many, problem_of
from PIL import Image

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.prm.labels import training_set
from mmeureka_jax.prm.search import run_trees
from mmeureka_jax.prm.tree import Node, Rollout, Tree
from mmeureka_jax.report.scripted_page import packed, read_element, unpacked
from mmeureka_jax.report.thumbnails import to_data_uri

EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'&amp;\ud800\u2028\0\r\n$title${x}"


@pytest.fixture(scope="module")
def trees() -> list[Tree]:
    settings = SearchConfig(rollouts=6, length_scale=20, max_searches=8, max_rollouts=150)
    return list(run_trees(map(problem_of, range(40)), draw_many, settings, 16, {"checkpoint": "c"}))


def write_trees(file: Path, trees: list[Tree]) -> Path:
    file.write_bytes("".join(tree.to_json() + "\n" for tree in trees).encode("utf-8", "backslashreplace"))
    return file


def page_of(folder: Path, trees: list[Tree], *options: object) -> str:
    file = write_trees(folder / "trees.jsonl", trees)
    assert mmeureka("prm", "tree", file, "--output", folder / "page.html", *options) == 0
    return (folder / "page.html").read_bytes().decode()


def stored_trees(page: str) -> list[dict]:
    return [unpacked(one) for one in read_element(page, "trees")]


def rebuilt(row: dict, made_with) -> Tree:
    """The tree that a page has."""

    def steps(numbers) -> tuple[str, ...]:
        return tuple(row["texts"][number] for number in numbers)

    nodes: list[Node] = []
    for parent, segment, value, visits, rollouts in row["nodes"]:
        before = nodes[parent].steps if parent >= 0 else ()
        own = [Rollout(steps(numbers), bool(right)) for right, *numbers in rollouts]
        nodes.append(Node(before + steps(segment), value, visits, own))
        if parent >= 0:
            nodes[parent].children.append(nodes[-1])
    return Tree(row["id"], row["question"], row["answer"], nodes[0], made_with)


@pytest.mark.parametrize(
    ("options", "rules"),
    [([], {}), (["--hard", "--seed", 3, "--min-words", 2], {"hard": True, "seed": 3, "min_words": 2})],
)
def test_the_page_has_the_trees_and_their_labels(trees, tmp_path, options, rules):
    page = page_of(tmp_path, trees, *options)
    rows = stored_trees(page)
    assert [rebuilt(row, tree.made_with) for row, tree in zip(rows, trees, strict=True)] == trees
    examples, counts = training_set(trees, **rules)
    found = []
    for row in rows:
        for numbers, labels in row["paths"]:
            segments = [[row["texts"][number].strip() for number in row["nodes"][place][1]] for place in numbers]
            text = "\n\n".join("\n\n".join(segment) + "<prm>" for segment in segments)
            found.append({"id": row["id"], "text": text, "labels": labels})
    assert found == [example.row() for example in examples]
    left_out = sum(count for row in rows for count, _ in row["left"])
    assert left_out == counts.negative.found + counts.positive.found - counts.kept > 0


def test_the_summary_counts_all_trees(trees, tmp_path):
    page = page_of(tmp_path, trees, "--limit", 3)
    _, counts = training_set(trees)
    names = ("trees", "searches", "rollouts", "paths for training", "labels")
    searches = sum(tree.searches for tree in trees)
    rollouts = sum(tree.rollouts for tree in trees)
    for name, number in zip(names, (len(trees), searches, rollouts, counts.kept, counts.labels), strict=True):
        assert f'<div class="name">{name}</div><div class="value">{number:,}</div>' in page
    values = [tree.root.value for tree in trees]
    bins = [values.count(0), *([0] * 10), values.count(1)]
    for value in values:
        if 0 < value < 1:
            bins[1 + int(10 * value)] += 1
    drawn = re.findall(r'<text x="([\d.]+)" [^>]*class="">(\d+)</text>', page)
    places = [15, *range(53, 353, 30), 361]  # the middles of the bars
    assert [(float(x), int(count)) for x, count in drawn] == [
        (place, count) for place, count in zip(places, bins, strict=True) if count
    ]
    assert len(drawn) > 4 and bins[0] and bins[-1]
    listed = read_element(page, "data")["list"]
    assert [row[:4] for row in listed] == [
        [tree.id, tree.root.value, tree.searches, tree.rollouts] for tree in trees[:3]
    ]
    assert len(stored_trees(page)) == 3 and "The first 3 of 40 trees" in page


def test_one_tree_is_shown_by_its_id(trees, tmp_path, capsys):
    page = page_of(tmp_path, trees, "--id", "p7")
    assert [row["id"] for row in stored_trees(page)] == ["p7"] and 'trees</div><div class="value">1<' in page
    assert mmeureka("prm", "tree", tmp_path / "trees.jsonl", "--output", tmp_path / "p.html", "--id", "x") == 2
    assert "no tree of problem 'x'; there are 40 trees, of 'p" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


def small_tree(name: str, question: str = "What?", text: str = "a", **made_with: object) -> Tree:
    rollouts = [Rollout((text, "1"), True), Rollout((text, "2"), False)]
    root = Node.estimated((), rollouts)
    root.children.append(Node((text,), 0.0, rollouts=[Rollout((text,), False)]))
    return Tree(name, question, "1", root, made_with)


def test_settings_that_differ_are_all_shown(tmp_path):
    page = page_of(tmp_path, [small_tree("a", seed=1, sampler={"top_k": 5}), small_tree("b", seed=2)])
    assert '<th scope="row">seed</th><td>[1, 2]</td>' in page
    assert '<th scope="row">sampler</th><td>[{&quot;top_k&quot;: 5}, null]</td>' in page


class Elements(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_hostile_text_stays_text(tmp_path):
    quiet = page_of(tmp_path, [small_tree("a", checkpoint="x")])
    evil = Tree(EVIL, EVIL, EVIL, small_tree("a", text=EVIL).root, {EVIL: EVIL})
    page = page_of(tmp_path, [evil])
    assert Elements(page).tags == Elements(quiet).tags
    (row,) = stored_trees(page)
    assert rebuilt(row, evil.made_with) == evil
    assert read_element(page, "data")["list"][0][0] == EVIL


def test_only_the_pages_own_script_may_run(tmp_path):
    page = page_of(tmp_path, [small_tree("a")])
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "innerHTML" not in script and "eval(" not in script
    assert "://" not in page.replace("http://www.w3.org/1998/Math/MathML", "")


def test_formulas_are_in_the_page(tmp_path):
    page = page_of(tmp_path, [small_tree("a", "of $x^2$", r"so $\frac{1}{2}$ and $\bad{x}$")])
    assert list(unpacked(read_element(page, "formulas"))["trees"]) == ["$x^2$", r"$\frac{1}{2}$"]


def test_packed_data_come_back():
    value = {"a": [EVIL, 1, None, "<>"]}
    assert unpacked(packed(value)) == value and re.fullmatch("[A-Za-z0-9+/=]*", packed(value))


@pytest.fixture
def data(tmp_path) -> Path:
    Image.new("RGB", (50, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    rows = [
        {"id": name, "question": "What?", "answer": "1", "image_path": f"{picture}.png"}
        for name, picture in (("a", "a"), ("broken", "b"), ("other", "a"), ("gone", "nowhere"))
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path / "data.json"


@pytest.mark.parametrize("named", [True, False])
def test_pictures_are_those_of_the_data(data, tmp_path, named):
    made_with = {"data": str(data)} if named else {}
    names = ["a", "broken", "missing", "gone"]
    all_trees = [small_tree(name, **made_with) for name in names] + [small_tree("other", "Which?", **made_with)]
    page = page_of(tmp_path, all_trees, *([] if named else ["--data", data]))
    shown = {row["id"]: row for row in stored_trees(page)}
    assert shown["a"]["pictures"] == [to_data_uri(Image.open(tmp_path / "a.png"))] and shown["a"]["notes"] == []
    assert shown["broken"]["pictures"] == [None] and "b.png" in shown["broken"]["notes"][0]
    assert shown["missing"]["notes"] == [f"There is no such problem in {data}."]
    assert "has another question, so its picture is not shown" in shown["other"]["notes"][0]
    assert "nowhere.png" in shown["gone"]["notes"][0]
    assert all(shown[name]["pictures"] == [] for name in ("missing", "other"))
    assert f"1 problem of 5 cannot be found in {data}." in page


def test_data_that_cannot_be_used(data, tmp_path, capsys):
    """Those that are asked for are an error, those that the trees name are a note."""
    file = write_trees(tmp_path / "trees.jsonl", [small_tree("x", data="nowhere.json")])
    output = tmp_path / "page.html"
    for spec, message in ((data, "none of the problems of the trees is there ('x')"), ("no.json", "no.json: no such")):
        assert mmeureka("prm", "tree", file, "--output", output, "--data", spec) == 2
        assert message in capsys.readouterr().err and not output.exists()
    assert mmeureka("prm", "tree", file, "--output", output) == 0
    assert "Pictures are not shown: nowhere.json: no such file" in output.read_text()
    assert "the trees do not name their data" in page_of(tmp_path, [small_tree("x")])
