"""Trees as rows of JSON: whole ones come back as they were, others are refused with what is wrong."""

from __future__ import annotations

import json

import pytest
from helpers.simulated_policy import draw, problem_of, settings_of

from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.search import run_tree
from mmeureka_jax.prm.tree import Node, Rollout, Tree

SMALL = Tree(
    "a",
    "What is 1 + 1?\n",
    "2",
    Node(
        (),
        0.5,
        visits=1,
        rollouts=[Rollout(("one", "2"), True), Rollout(("é", "3"), False)],
        children=[Node(("one", "2"), 1.0), Node(("é",), 0.0)],
    ),
    {"seed": 1},
)


def test_trees_come_back_as_they_were():
    for number in range(60):
        tree = run_tree(problem_of(number), draw, settings_of(number), {"seed": number})
        line = tree.to_json()
        assert "\n" not in line
        assert Tree.from_json(line, "t.jsonl:1") == tree


def test_the_form_of_a_row():
    assert json.loads(SMALL.to_json()) == {
        "id": "a",
        "question": "What is 1 + 1?\n",
        "answer": "2",
        "made_with": {"seed": 1},
        "root": {
            "steps": [],
            "value": 0.5,
            "visits": 1,
            "rollouts": [{"steps": ["one", "2"], "right": True}, {"steps": ["é", "3"], "right": False}],
            "children": [
                {"steps": ["one", "2"], "value": 1.0, "visits": 0, "rollouts": [], "children": []},
                {"steps": ["é"], "value": 0.0, "visits": 0, "rollouts": [], "children": []},
            ],
        },
    }


def test_a_torn_row_is_refused_wherever_it_is_cut():
    line = SMALL.to_json()
    for end in range(len(line)):
        with pytest.raises(UserError, match=r"t.jsonl:3: the row is torn .* at column \d+\); remove the line"):
            Tree.from_json(line[:end], "t.jsonl:3")


def without(key: str):
    def change(row):
        del row[key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("root"), "t.jsonl:3: not the row of a tree"),
        (without("id"), "t.jsonl:3: 'id' holds null, expected text"),
        (lambda row: row.update(answer=2), "t.jsonl:3: 'answer' holds a number, expected text"),
        (lambda row: row.update(made_with=[]), "'made_with' holds a list, expected an object"),
        (lambda row: row.update(root=[]), "t.jsonl:3: root: expected an object, found list"),
        (lambda row: row["root"].update(steps=["x"], children=[]), "root: 'steps' must be empty"),
        (lambda row: without("children")(row["root"]), "root: 'children' holds null, expected a list"),
        (lambda row: row["root"].update(value=True), "root: 'value' holds true or false, expected a number"),
        (lambda row: row["root"].update(value=1.5), "root: 'value' is 1.5, expected a share"),
        (lambda row: row["root"].update(value=float("nan")), "root: 'value' is nan"),
        (lambda row: row["root"].update(visits=-1), "root: 'visits' is -1"),
        (lambda row: row["root"]["rollouts"][1].update(right=1), r"root.rollouts\[1\]: 'right' holds a number"),
        (lambda row: row["root"]["rollouts"][1].update(steps=["x", 1]), r"rollouts\[1\].steps\[1\]: expected text"),
        (lambda row: row["root"]["children"].append(3), r"root.children\[2\]: expected an object, found int"),
        (lambda row: row["root"]["children"][1].update(value=None), r"root.children\[1\]: 'value' holds null"),
        (lambda row: row["root"]["children"][1].update(steps=[]), r"root.children\[1\]: its steps do not continue"),
        (
            lambda row: row["root"]["children"][0].update(children=[row["root"]["children"][1]]),
            r"root.children\[0\].children\[0\]: its steps do not continue those of its parent",
        ),
    ],
)
def test_a_row_of_something_else_is_refused(change, message):
    row = json.loads(SMALL.to_json())
    change(row)
    with pytest.raises(UserError, match=message):
        Tree.from_json(json.dumps(row), "t.jsonl:3")


@pytest.mark.parametrize("line", ["[]", '{"id": "a", "text": "x"}', "3", "1" * 5000, "[" * 100_000])
def test_what_is_no_row_is_refused(line):
    with pytest.raises(UserError, match="^t.jsonl:3: "):
        Tree.from_json(line, "t.jsonl:3")


def test_nodes_are_walked_depth_first():
    root = Node((), 0.5, children=[Node(("a",), 0.5, children=[Node(("a", "b"), 1.0)]), Node(("c", "d"), 0.0)])
    assert [node.steps for node in root.walk()] == [(), ("a",), ("a", "b"), ("c", "d")]
    assert [root.segment(child) for child in root.children] == [("a",), ("c", "d")]
