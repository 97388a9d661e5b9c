"""The training set of a process reward model against a plain recount of the trees, written from the definitions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from helpers.simulated_policy import draw_many, problem_of

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.labels import LabelCounts, PathCounts, training_set
from mmeureka_jax.prm.search import run_trees
from mmeureka_jax.prm.tree import Node, Tree

WORDS = "one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture(scope="module")
def trees() -> list[Tree]:
    settings = SearchConfig(rollouts=6, length_scale=20, max_searches=8, max_rollouts=150)
    return list(run_trees(map(problem_of, range(150)), draw_many, settings, at_a_time=16))


def recounted(tree: Tree, hard: bool) -> tuple[list, list, Counter[str]]:
    """The usable paths of a tree, negative and positive, and how many were not usable for which reason."""
    negative: dict[str, list[float]] = {}
    positive: dict[str, list[float]] = {}
    counts: Counter[str] = Counter()

    def visit(node, before, text, labels):
        segment = [step.strip() for step in node.steps[before:]]
        text = text + "\n\n".join(segment) + "<prm>\n\n"
        labels = [*labels, float(node.value > 0) if hard else node.value]
        if node.value > 0 and node.children:
            for child in node.children:
                visit(child, len(node.steps), text, labels)
            return
        kind, paths = ("negative", negative) if node.value <= 0 else ("positive", positive)
        counts[f"{kind} found"] += 1
        if len(text.split(" ")) <= 10:
            counts[f"{kind} too short"] += 1
        elif text.strip() in paths:
            counts[f"{kind} repeated"] += 1
        else:
            paths[text.strip()] = labels

    for child in tree.root.children:
        visit(child, 0, "", [])
    return list(negative.items()), list(positive.items()), counts


def paths_of(kind: str, counts: Counter[str]) -> PathCounts:
    return PathCounts(
        found=counts[f"{kind} found"], too_short=counts[f"{kind} too short"], repeated=counts[f"{kind} repeated"]
    )


@pytest.mark.parametrize("hard", [False, True])
def test_the_training_set_is_that_of_a_plain_recount(trees, hard):
    examples, counts = training_set(trees, hard=hard, seed=5)
    expected: Counter[str] = Counter()
    rows = iter(examples)
    for tree in trees:
        if tree.root.value in (0, 1):
            expected["never" if tree.root.value == 0 else "always"] += 1
            continue
        negative, positive, of_tree = recounted(tree, hard)
        expected += of_tree
        kept = min(len(negative), len(positive))
        expected["surplus"] += len(positive) - kept
        expected["negative kept"] += len(negative)
        expected["positive kept"] += kept
        given = [next(rows).row() for _ in range(len(negative) + kept)]
        assert {row["id"] for row in given} <= {tree.id}
        found = [(row["text"], row["labels"]) for row in given]
        assert found[: len(negative)] == negative
        chosen = found[len(negative) :]
        assert chosen == [path for path in positive if path in chosen] and len(chosen) == kept
    assert next(rows, None) is None
    assert counts == LabelCounts(
        trees=len(trees),
        never_solved=expected["never"],
        always_solved=expected["always"],
        negative=paths_of("negative", expected),
        positive=replace(paths_of("positive", expected), surplus=expected["surplus"]),
        labels=sum(len(example.labels) for example in examples),
    )
    assert (counts.negative.kept, counts.positive.kept) == (expected["negative kept"], expected["positive kept"])
    assert min(expected.values()) > 0 and len(expected) == 11, expected
    assert all(example.text.count("<prm>") == len(example.labels) for example in examples)


def test_the_seed_chooses_positive_paths_of_each_tree_alone(trees):
    everything = {example for example in training_set(trees, seed=0)[0]}
    assert everything == set(training_set(random.Random(1).sample(trees, len(trees)), seed=0)[0])
    other = set(training_set(trees, seed=1)[0])
    assert len(other) == len(everything)
    assert {one for one in everything if one.is_negative} == {one for one in other if one.is_negative}
    assert other != everything
    half = trees[::2]
    assert set(training_set(half, seed=0)[0]) == {one for one in everything if one.id in {tree.id for tree in half}}


def tree_of(*children: Node, value: float = 0.5, name: str = "a") -> Tree:
    return Tree(name, "?", "1", Node((), value, children=list(children)))


def test_the_text_of_a_path():
    first = Node((f" {WORDS} ", "a"), 0.5)
    first.children = [Node((*first.steps, "b\n"), 0.0), Node((*first.steps, "c", "d"), 1.0)]
    examples, counts = training_set([tree_of(first), tree_of(value=1.0, name="b")])
    assert [example.row() for example in examples] == [
        {"id": "a", "text": f"{WORDS}\n\na<prm>\n\nb<prm>", "labels": [0.5, 0.0]},
        {"id": "a", "text": f"{WORDS}\n\na<prm>\n\nc\n\nd<prm>", "labels": [0.5, 1.0]},
    ]
    assert counts.table().split("\n") == [
        "        2  trees",
        "        1    not used: always solved",
        "        1    used",
        "        1  negative paths",
        "        1    kept",
        "        1  positive paths",
        "        1    kept",
        "        4  labels",
    ]


def test_texts_of_ten_words_are_too_short():
    """Words are what spaces separate, and the marker is a part of one."""
    ten = " ".join(["w"] * 10)
    lines = ten.replace(" ", "\n") + " w"
    leaves = [Node((text,), 0.0) for text in (ten, f"{ten} w", lines, "w" + "  w" * 5)]
    examples, counts = training_set([tree_of(*leaves)])
    assert [example.text for example in examples] == [f"{ten} w<prm>", "w" + "  w" * 5 + "<prm>"]
    assert counts.negative == PathCounts(found=4, too_short=2)


def test_a_step_that_holds_the_marker_is_left_out():
    examples, counts = training_set([tree_of(Node((f"{WORDS} <prm> x",), 0.0), Node((f"{WORDS} y",), 0.0))])
    assert [example.text for example in examples] == [f"{WORDS} y<prm>"]
    assert counts.negative == PathCounts(found=2, with_marker=1)
    assert "1    left out: a step holds <prm>" in counts.table()


def test_equal_texts_count_once_among_paths_of_their_kind():
    """The first one's labels are kept; as a positive path the text is another example."""
    twice = [Node((WORDS,), 0.0), Node((WORDS,), 0.0), Node((WORDS,), 0.25)]
    examples, counts = training_set([tree_of(*twice)])
    assert [example.labels for example in examples] == [(0.0,), (0.25,)]
    assert counts.negative == PathCounts(found=2, repeated=1)


def test_trees_of_one_problem_are_refused():
    with pytest.raises(UserError, match="two trees have the id 'a'; give each problem's tree once"):
        training_set([tree_of(), tree_of()])
