"""A search that is killed, and what is on disk then: the same calls follow, and the same trees come out."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.simulated_policy import draw_many, problem_of

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm import search_files
from mmeureka_jax.prm.search import run_trees
from mmeureka_jax.prm.search_files import SearchFiles
from mmeureka_jax.prm.tree import Node, Tree

PROBLEMS = [problem_of(number) for number in range(40)]
SETTINGS = SearchConfig(rollouts=6, length_scale=20, max_searches=12, max_rollouts=150)
MADE_WITH = {"checkpoint": "abc", "seed": 0, "search": asdict(SETTINGS)}


class Killed(Exception):
    pass


class Search:
    """Searches into a folder until it is killed, and notes what each call of the sampler was asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.calls: list[list[tuple[str, int]]] = []

    def run(self, killed_after: int | None = None, trees: int = 4) -> None:
        files = SearchFiles(self.folder, MADE_WITH)
        left = [problem for problem in PROBLEMS if problem.id not in files.finished]
        made = 0

        def draw_and_record(requests):
            nonlocal made
            if made == killed_after:
                raise Killed
            made += 1
            self.calls.append([(request.problem.id, request.node) for request in requests])
            draws = draw_many(requests)
            files.add_draws(requests, draws)
            return draws

        for tree in run_trees(left, draw_and_record, SETTINGS, trees, MADE_WITH, files.recorded):
            files.add_tree(tree)
        files.finish([problem.id for problem in PROBLEMS], {})

    @property
    def result(self) -> bytes:
        assert sorted(os.listdir(self.folder)) == ["search.json", "trees.jsonl"]
        return (self.folder / "trees.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Search:
    search = Search(tmp_path_factory.mktemp("whole"))
    search.run()
    return search


def cut_last_row(file: Path, chance: random.Random) -> None:
    """As a kill leaves a file in the middle of a write."""
    if file.exists():
        lines = file.read_bytes().splitlines(keepends=True)
        lines[-1:] = [line[: chance.randrange(len(line))] for line in lines[-1:]]
        file.write_bytes(b"".join(lines))


@pytest.mark.parametrize("seed", range(12))
def test_five_kills_change_neither_trees_nor_calls(tmp_path, whole, seed):
    chance = random.Random(seed)
    search = Search(tmp_path)
    lost = 0
    for _ in range(5):
        with pytest.raises(Killed):
            search.run(killed_after=chance.randint(0, 4))
        torn = chance.choice([None, "draws.jsonl", "trees.jsonl"])
        if torn == "draws.jsonl" and len((tmp_path / torn).read_bytes().splitlines()) > 1:
            search.calls.pop()  # it is made again
        if torn is not None:
            cut_last_row(tmp_path / torn, chance)
        lost += torn is not None
    search.run()
    assert search.result == whole.result
    assert search.calls == whole.calls or lost


def test_calls_of_a_resumed_search_are_those_of_an_uninterrupted_one(tmp_path, whole):
    search = Search(tmp_path)
    for calls in (3, 0, 1, 7, 5):
        with pytest.raises(Killed):
            search.run(killed_after=calls)
    search.run()
    assert search.calls == whole.calls
    assert search.result == whole.result


@pytest.mark.parametrize("trees", [1, 3, 11, 50])
def test_trees_do_not_depend_on_how_many_are_open(tmp_path, whole, trees):
    search = Search(tmp_path)
    with pytest.raises(Killed):
        search.run(killed_after=4)
    search.run(trees=trees)
    assert search.result == whole.result


def test_draws_of_finished_trees_are_dropped(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(search_files, "_LARGE", 2000)
    search = Search(tmp_path)
    sizes = []
    for _ in range(4):
        with pytest.raises(Killed):
            search.run(killed_after=9)
        sizes.append((tmp_path / "draws.jsonl").stat().st_size)
    drawn = [row["id"] for line in (tmp_path / "draws.jsonl").open() for row in json.loads(line).get("drawn", ())]
    every = [name for call in search.calls for name, _ in call]
    assert len(drawn) < len(every) / 2
    search.run()
    assert search.result == whole.result
    assert search.calls == whole.calls


def test_a_finished_search_draws_nothing(tmp_path):
    search = Search(tmp_path)
    search.run()
    made = len(search.calls)
    before = search.result
    search.run()
    assert (len(search.calls), search.result) == (made, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "other"}, r"trees.jsonl:1: there are trees of another policy \(different: checkpoint\)"),
        (
            {"seed": 1, "data": "x"},
            r"trees.jsonl:1: there are trees made with other settings \(different: seed, data\)",
        ),
    ],
)
def test_trees_of_another_search_are_refused(tmp_path, whole, change, message):
    (tmp_path / "trees.jsonl").write_bytes(whole.result)
    with pytest.raises(UserError, match=message):
        SearchFiles(tmp_path, MADE_WITH | change)
    assert (tmp_path / "trees.jsonl").read_bytes() == whole.result


def test_draws_of_another_policy_are_refused(tmp_path):
    search = Search(tmp_path)
    with pytest.raises(Killed):
        search.run(killed_after=1)
    (tmp_path / "trees.jsonl").unlink()
    with pytest.raises(UserError, match=r"draws.jsonl: there are trees of another policy"):
        SearchFiles(tmp_path, MADE_WITH | {"checkpoint": "other"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [lines[0], lines[1][:99] + b"\n", *lines[2:]], r"trees.jsonl:2: the row is torn"),
        (lambda lines: [*lines, lines[3]], r"trees.jsonl:41: a second tree of problem 'p3'"),
    ],
)
def test_a_damaged_file_of_trees_is_refused(tmp_path, whole, damage, message):
    damaged = b"".join(damage(whole.result.splitlines(keepends=True)))
    (tmp_path / "trees.jsonl").write_bytes(damaged)
    with pytest.raises(UserError, match=message):
        SearchFiles(tmp_path, MADE_WITH)
    assert (tmp_path / "trees.jsonl").read_bytes() == damaged  # nothing is lost


def test_a_deep_tree_is_kept(tmp_path):
    node = Node(tuple("s" * 200), 0.5)
    for depth in range(199, -1, -1):
        node = Node(tuple("s" * depth), 0.5, children=[node])
    files = SearchFiles(tmp_path, MADE_WITH)
    files.add_tree(Tree("deep", "question", "answer", node, MADE_WITH))
    files.finish(["deep"], {})
    assert SearchFiles(tmp_path, MADE_WITH).finished == {"deep"}
    assert len((tmp_path / "trees.jsonl").read_bytes().splitlines()) == 1
