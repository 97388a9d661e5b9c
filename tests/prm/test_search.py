"""The tree search against a plain recursive one, written from the definitions, decision for decision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from helpers.simulated_policy import draw, draw_many, outcome, problem_of, settings_of

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.prm.search import RolloutRequest, TreeSearch, run_tree, run_trees
from mmeureka_jax.prm.tree import Node, Rollout

PROBLEMS = [problem_of(number) for number in range(200)]


class Reference:
    """The definitions as they are written: segments, recursion, and all priorities anew before each choice."""

    def __init__(self, problem: str, settings: SearchConfig):
        self.problem = problem
        self.settings = settings
        self.pool: list[tuple[dict[str, Any], tuple[str, ...]]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.chosen: list[tuple[Any, ...]] = []
        self.searches = 0
        self.drawn = 0
        self.root = self.state((), None)
        self.estimate(self.root)
        while self.pool and self.searches < settings.max_searches and self.drawn < settings.max_rollouts:
            state, rollout = self.select()
            self.binary_search(state, rollout, 0, len(rollout) - 1)
            state["visits"] += 1
            self.searches += 1

    def state(self, segment, parent) -> dict[str, Any]:
        return {"segment": segment, "parent": parent, "mc": None, "visits": 0, "rollouts": [], "children": []}

    def prefix(self, state) -> tuple[str, ...]:
        return () if state["parent"] is None else self.prefix(state["parent"]) + state["segment"]

    def waiting(self) -> list[tuple[Any, ...]]:
        return [(self.prefix(state), state["visits"], rollout) for state, rollout in self.pool]

    def estimate(self, state) -> None:
        steps = self.prefix(state)
        number = len(self.asked)
        self.asked.append((number, steps, self.waiting()))
        right = 0
        wrong = []
        for sample in range(self.settings.rollouts):
            rollout = outcome(self.problem, number, steps, sample)
            is_right = rollout.right and rollout.steps != ()
            state["rollouts"].append((rollout.steps, is_right))
            if is_right:
                right += 1
                if not any(child["segment"] == rollout.steps for child in state["children"]):
                    leaf = self.state(rollout.steps, state)
                    leaf["mc"] = 1.0
                    state["children"].append(leaf)
            elif rollout.steps not in wrong:
                wrong.append(rollout.steps)
        self.drawn += self.settings.rollouts
        state["mc"] = right / self.settings.rollouts
        if state["mc"] != 0:
            self.pool += [(state, rollout) for rollout in wrong]

    def visits(self, state) -> int:
        return state["visits"] + sum(map(self.visits, state["children"]))

    def select(self):
        best = None
        for place, (state, rollout) in enumerate(self.pool):
            words = len("\n".join(rollout).split())
            q = self.settings.alpha ** (1 - state["mc"]) * self.settings.beta ** (words / self.settings.length_scale)
            u = self.settings.exploration * math.sqrt(self.visits(self.root)) / (1 + state["visits"])
            if best is None or q + u > best[0]:
                best = (q + u, place)
        state, rollout = self.pool.pop(best[1])
        self.chosen.append((self.prefix(state), rollout))
        return state, rollout

    def binary_search(self, state, rollout, left, right) -> None:
        if left > right:
            return
        middle = (left + right) // 2
        child = self.state(rollout[left : middle + 1], state)
        state["children"].append(child)
        if left == right == len(rollout) - 1:
            child["mc"] = 0.0
            return
        self.estimate(child)
        if child["mc"] == 0:
            self.binary_search(state, rollout, left, middle - 1)
        else:
            self.binary_search(child, rollout, middle + 1, right)

    def plain(self, state) -> tuple[Any, ...]:
        children = [self.plain(child) for child in state["children"]]
        return self.prefix(state), state["mc"], state["visits"], state["rollouts"], children


def plain(node: Node) -> tuple[Any, ...]:
    rollouts = [(rollout.steps, rollout.right) for rollout in node.rollouts]
    return node.steps, node.value, node.visits, rollouts, [plain(child) for child in node.children]


class Watched(TreeSearch):
    """A search that keeps what it has chosen."""

    def _take(self):
        candidate = super()._take()
        self.__dict__.setdefault("chosen", []).append((candidate.node.steps, candidate.rollout))
        return candidate


def waiting(search: TreeSearch) -> list[tuple[Any, ...]]:
    return [(candidate.node.steps, candidate.node.visits, candidate.rollout) for candidate in search.pool]


def test_two_hundred_searches_are_those_of_the_reference():
    seen: Counter[str] = Counter()
    for number, problem in enumerate(PROBLEMS):
        settings = settings_of(number)
        reference = Reference(problem.id, settings)
        search = Watched(problem, settings)
        asked = []
        while search.request:
            asked.append((search.request.node, search.request.steps, waiting(search)))
            search.tell(draw(search.request))
        chosen = getattr(search, "chosen", [])
        assert asked == reference.asked, problem.id
        assert chosen == reference.chosen, problem.id
        assert waiting(search) == reference.waiting(), problem.id
        tree = search.tree()
        assert plain(tree.root) == reference.plain(reference.root), problem.id
        assert (tree.searches, tree.rollouts) == (reference.searches, reference.drawn), problem.id

        seen["several searches"] += tree.searches > 1
        seen["a search below the root"] += any(steps for steps, _ in chosen)
        seen["a rollout without steps"] += any(not rollout for _, rollout in chosen)
        seen["ended by searches"] += bool(search.pool) and 0 < tree.searches == settings.max_searches
        seen["beyond the budget of rollouts"] += bool(search.pool) and tree.rollouts > settings.max_rollouts
        seen["ended by an empty pool"] += bool(chosen) and not search.pool
        seen["never solved"] += tree.root.value == 0
        seen["always solved"] += tree.root.value == 1
    assert len(+seen) == 8 and min(seen.values()) >= 5, seen


def test_trees_do_not_depend_on_how_many_are_open():
    settings = SearchConfig(rollouts=4, length_scale=20, max_searches=6, max_rollouts=60)
    problems = PROBLEMS[:40]
    alone = {problem.id: run_tree(problem, draw, settings) for problem in problems}
    assert len({tree.rollouts for tree in alone.values()}) > 5
    for at_a_time in (1, 3, 16, 100):
        calls: list[int] = []

        def draw_and_count(requests: Sequence[RolloutRequest], calls=calls) -> list[list[Rollout]]:
            calls.append(len(requests))
            return draw_many(requests)

        trees = list(run_trees(iter(problems), draw_and_count, settings, at_a_time))
        assert {tree.id: tree for tree in trees} == alone and len(trees) == len(problems)
        assert [tree.id for tree in trees] == list(alone) or at_a_time > 1
        # As long as a problem waits, all places are taken.
        assert calls[0] == min(at_a_time, 40) and calls == sorted(calls, reverse=True)
        assert sum(calls) * settings.rollouts == sum(tree.rollouts for tree in trees)


def test_a_finished_tree_is_handed_on_while_others_are_open():
    """And a problem is read no sooner than there is room for it."""
    read = []
    problems = (read.append(problem.id) or problem for problem in PROBLEMS)
    trees = run_trees(problems, draw_many, SearchConfig(max_searches=0), at_a_time=3)
    assert read == []
    assert next(trees).id == "p0" and read == ["p0", "p1", "p2"]


def test_a_tree_names_what_it_was_made_with():
    settings = SearchConfig(rollouts=2, max_searches=1)
    tree = run_tree(problem_of(7), draw, settings, {"policy": "sha", "seed": 3})
    assert (tree.id, tree.question, tree.answer) == ("p7", "question 7", "7")
    assert tree.made_with == {
        "policy": "sha",
        "seed": 3,
        "search": {
            "rollouts": 2, "alpha": 0.5, "beta": 0.9, "length_scale": 2000.0, "exploration": 0.125,
            "max_searches": 1, "max_rollouts": 1000,
        },
    }  # fmt: skip
    assert SearchConfig() == replace(settings, rollouts=16, max_searches=200)


def test_a_search_is_told_what_it_asked_for():
    search = TreeSearch(problem_of(0), SearchConfig(rollouts=2, max_searches=0))
    with pytest.raises(ValueError, match="p0: 1 rollouts where 2 were asked for"):
        search.tell([Rollout(("a",), True)])
    with pytest.raises(ValueError, match="p0: its search has not ended"):
        search.tree()
    search.tell([Rollout(("a",), True)] * 2)
    assert search.request is None and search.tree().root.value == 1
    with pytest.raises(ValueError, match="where 0 were"):
        search.tell([Rollout(("a",), True)])
    with pytest.raises(ValueError, match="at least one tree"):
        next(run_trees([], draw_many, SearchConfig(), at_a_time=0))
