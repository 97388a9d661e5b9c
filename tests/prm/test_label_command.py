"""`mmeureka prm label`: what it writes is the training set of the trees, and what it cannot use it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import file_size_limit, mmeureka, read_rows
from helpers.simulated_policy import draw_many, problem_of

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.prm.labels import training_set
from mmeureka_jax.prm.search import run_trees
from mmeureka_jax.prm.tree import Node, Tree

MADE_WITH = {"checkpoint": "c", "sampler": {"temperature": 1.0}, "data": "d", "seed": 0}
WORDS = "one two three four five six seven eight nine ten eleven"


@pytest.fixture(scope="module")
def trees() -> list[Tree]:
    settings = SearchConfig(rollouts=6, length_scale=20, max_searches=6, max_rollouts=100)
    return list(run_trees(map(problem_of, range(60)), draw_many, settings, 16, MADE_WITH))


def write_trees(file: Path, trees: list[Tree]) -> Path:
    file.write_text(rows_of(*trees))
    return file


def tree_of(name: str, *children: Node, value: float = 0.5, **made_with: object) -> Tree:
    return Tree(name, "?", "1", Node((), value, children=list(children)), MADE_WITH | made_with)


def solved_sometimes(name: str, text: str = WORDS, **made_with: object) -> Tree:
    return tree_of(name, Node((text,), 0.0), Node((f"{text} x",), 1.0), **made_with)


@pytest.mark.parametrize(
    ("options", "rules"),
    [([], {}), (["--hard", "--seed", 7, "--min-words", 0], {"hard": True, "seed": 7, "min_words": 0})],
)
def test_the_rows_are_the_training_set_of_all_files(trees, tmp_path, capsys, options, rules):
    files = [write_trees(tmp_path / "a.jsonl", trees[:20]), write_trees(tmp_path / "b.jsonl", trees[20:])]
    output = tmp_path / "new" / "labels.jsonl"
    assert mmeureka("prm", "label", *files, "--output", output, *options) == 0
    examples, counts = training_set(trees, **rules)
    assert read_rows(output) == [example.row() for example in examples]
    printed = capsys.readouterr().out
    assert printed.startswith(counts.table() + "\n") and f"{len(examples):,} paths of" in printed


def test_a_validation_set_has_problems_of_its_own(trees, tmp_path, capsys):
    """A problem stays on its side, whatever trees it is read with."""

    def split(chosen: list[Tree], share: float) -> list[list[dict]]:
        file = write_trees(tmp_path / "t.jsonl", chosen)
        outputs = [tmp_path / "train.jsonl", tmp_path / "validation.jsonl"]
        options = ["--validation", outputs[1], "--validation-share", share]
        assert mmeureka("prm", "label", file, "--output", outputs[0], *options) == 0
        return [read_rows(output) for output in outputs]

    everything = [example.row() for example in training_set(trees)[0]]
    train, validation = split(trees, 0.3)
    ids = {row["id"] for row in validation}
    assert [row for row in everything if row["id"] not in ids] == train
    assert [row for row in everything if row["id"] in ids] == validation
    assert 0.1 < len(ids) / len({row["id"] for row in everything}) < 0.5
    assert f"{len(validation)} paths of {len(ids)} problems" in capsys.readouterr().out
    assert {row["id"] for row in split(trees[::-2], 0.3)[1]} <= ids
    assert {row["id"] for row in split(trees, 0.4)[1]} >= ids


def test_texts_of_every_kind_come_back(tmp_path):
    text = f'{WORDS} é "\u2028 \ud800'
    file = write_bytes(tmp_path / "t.jsonl", solved_sometimes("ü\ud800", text))
    assert mmeureka("prm", "label", file, "--output", tmp_path / "o.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().split("\n")[:-1]]
    assert [(row["id"], row["text"]) for row in rows] == [
        ("ü\ud800", f"{text}<prm>"),
        ("ü\ud800", f"{text} x<prm>"),
    ]


def write_bytes(file: Path, tree: Tree) -> Path:
    file.write_bytes(rows_of(tree).encode("utf-8", "backslashreplace"))
    return file


def rows_of(*trees: Tree) -> str:
    return "".join(tree.to_json() + "\n" for tree in trees)


A = rows_of(solved_sometimes("a"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "t.jsonl: no such file; `mmeureka prm search` writes files of trees"),
        ("", "t.jsonl: the file is empty"),
        (A + A[:50], "t.jsonl:2: the row is torn"),
        (A + "\n" + A, "t.jsonl:2: the row is torn"),
        (b"\xff\n", "t.jsonl:1: not UTF-8 at byte 1 of the row"),
        (A + rows_of(solved_sometimes("b")) + A, "t.jsonl:3: a tree of problem 'a' is at {}/t.jsonl:1 too"),
        (
            A + rows_of(solved_sometimes("b", seed=3, data="e"), solved_sometimes("c", checkpoint="x")),
            "t.jsonl:3: its tree is made with another checkpoint than that of {}/t.jsonl:1; the values of",
        ),
        (
            A + rows_of(solved_sometimes("b", sampler={"temperature": 0.7}, adapters="x")),
            "t.jsonl:2: its tree is made with another sampler.temperature, adapters than that of {}/t.jsonl:1",
        ),
        (
            rows_of(tree_of("a", value=0), tree_of("b", value=1.0)),
            "t.jsonl: no path for training in 2 trees (1 never solved, 1 always solved); search problems that the",
        ),
        (
            rows_of(solved_sometimes("a", "short"), tree_of("b", value=1.0)),
            "in 2 trees (1 always solved, 1 solved sometimes): 2 paths have fewer than 11 words; lower --min-words",
        ),
        (rows_of(solved_sometimes("a", "<prm> x")), "0 paths have fewer than 11 words, 2 hold <prm>; search other"),
        (
            rows_of(tree_of("a", Node((WORDS,), 1.0))),
            "none has a negative path; search longer, with a larger prm.search.max_searches",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, capsys, content, message):
    """And what was written before stays."""
    file = tmp_path / "t.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    output = tmp_path / "o.jsonl"
    output.write_text("before")
    assert mmeureka("prm", "label", file, "--output", output) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmeureka: error: ")]
    assert message.format(tmp_path) in error
    assert output.read_text() == "before" and {path.name for path in tmp_path.iterdir()} <= {"t.jsonl", "o.jsonl"}


def test_outputs_that_cannot_be_are_refused(tmp_path, capsys):
    file = write_trees(tmp_path / "t.jsonl", [solved_sometimes("a")])
    before = file.read_bytes()

    def refused(*options: object) -> str:
        assert mmeureka("prm", "label", file, *options) == 2
        return capsys.readouterr().err

    output = tmp_path / "o.jsonl"
    assert "t.jsonl: the file is given twice" in refused("--output", tmp_path / "." / "t.jsonl")
    assert "o.jsonl: the file is given twice" in refused("--output", output, "--validation", output)
    assert "is for --validation V.jsonl" in refused("--output", output, "--validation-share", 0.5)
    assert "above 0 and below 1" in refused("--output", output, "--validation", tmp_path / "v", "--validation-share", 1)
    for share, empty in ((0.001, "v.jsonl"), (0.999, "o.jsonl")):
        said = refused("--output", output, "--validation", tmp_path / "v.jsonl", "--validation-share", share)
        assert f"{empty}: no paths for it, as none of the 1 problems" in said
    with file_size_limit(10):
        assert "o.jsonl: cannot write" in refused("--output", output)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
