"""OmegaPRM: a tree search that labels the steps of a policy's solutions, without people.

A state is a solution's steps so far, and its value the share of right ones among rollouts from it. A search takes a
wrong rollout of a state that can be solved, and finds by bisection how far it is still right:

    rollout   | step 1 | step 2 | step 3 | step 4 | step 5 | answer (wrong)
    1st probe  ------------------------> value 0.25: right so far, so the mistake is later
    2nd probe                            -----------------> value 0: the mistake is in steps 4 to 5
    3rd probe                            --------> value 0: it is in step 4

Each probe is a state with rollouts of its own, so later searches start from there, too. `TreeSearch` decides what is
probed, and draws nothing: it asks for rollouts, and is told which are right. So many trees can be searched at a time,
with all that they ask for in one call (`run_trees`), and a simulated policy can take the place of a model.

Source: MM-PRM (arXiv 2505.13427) with its published code, after OmegaPRM (arXiv 2406.06592). This follows the code also
where the papers are silent:

- The share of right rollouts counts repeated ones; the children and the pool have each distinct rollout once.
- The budget of rollouts is looked at between searches only, so the last search may exceed it.
- A rollout without steps is wrong. It is chosen like any other, and a search from it finds nothing.

It differs from the code in two things. The last step of a rollout needs no probe: the code asks its judge, a language
model, once more about the final answer, while here the verdict on the rollout stands. Of rollouts with exactly equal
priority the first in the pool is chosen; the code compares visits and then texts, and else leaves it to a heap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.data.record import Problem
from mmeureka_jax.prm.tree import Node, Rollout, Steps, Tree


@dataclass(frozen=True)
class RolloutRequest:
    """What a search waits for: rollouts from a state, each with the verdict on its answer.

    A draw is named by (problem, node, sample), with samples counted from 0 to `count` - 1: if equal names draw equal
    rollouts, a tree depends on nothing else.

    Attributes:
        node: the number of the state among those of its tree, in the order in which rollouts are asked for.
        steps: the state.
    """

    problem: Problem
    node: int
    steps: Steps
    count: int


@dataclass(frozen=True, eq=False)
class Candidate:
    """A wrong rollout from which a search may start.

    Attributes:
        quality: the part of the priority that stays as it is, the paper's Q.
    """

    node: Node
    rollout: Steps
    quality: float


def quality(value: float, rollout: Steps, settings: SearchConfig) -> float:
    """Q = alpha^(1 - value) * beta^(words / length_scale): high for short rollouts of states that are usually solved.

    Source: OmegaPRM; MM-PRM's code, which measures a rollout in words.
    """
    words = sum(len(step.split()) for step in rollout)
    return settings.alpha ** (1 - value) * settings.beta ** (words / settings.length_scale)


def exploration(searches: int, visits: int, settings: SearchConfig) -> float:
    """U = c * sqrt(visits of all states) / (1 + visits of this one), where each search is one visit.

    Source: OmegaPRM; MM-PRM's code.
    """
    return settings.exploration * math.sqrt(searches) / (1 + visits)


class TreeSearch:
    """The search of one problem's tree, a state machine without randomness.

    Attributes:
        request: what it waits for; None when it has ended.
        root: the tree so far; None before the first rollouts.
        pool: what searches may start from, in the order in which it was found.
    """

    def __init__(self, problem: Problem, settings: SearchConfig):
        self.problem = problem
        self.settings = settings
        self.root: Node | None = None
        self.pool: list[Candidate] = []
        self.request: RolloutRequest | None = None
        self._numbers = itertools.count()
        self._drawn = 0
        self._searches = 0
        self._steps = self._run()
        self.request = next(self._steps)

    def tell(self, rollouts: Sequence[Rollout]) -> None:
        """Continues with the rollouts that were asked for, up to the next request or the end.

        Raises:
            ValueError: they are not as many as were asked for, or nothing was.
        """
        expected = self.request.count if self.request else 0
        if not rollouts or len(rollouts) != expected:
            raise ValueError(f"{self.problem.id}: {len(rollouts)} rollouts where {expected} were asked for")
        try:
            self.request = self._steps.send(rollouts)
        except StopIteration:
            self.request = None

    def tree(self, made_with: Mapping[str, Any] | None = None) -> Tree:
        """The tree of an ended search.

        Args:
            made_with: what else it depends on than the settings of the search.
        """
        if self.root is None or self.request is not None:
            raise ValueError(f"{self.problem.id}: its search has not ended")
        everything = {**(made_with or {}), "search": asdict(self.settings)}
        return Tree(self.problem.id, self.problem.question, self.problem.answer or "", self.root, everything)

    def _run(self) -> Generator[RolloutRequest, Sequence[Rollout], None]:
        self.root = yield from self._probe(())
        while self._may_search():
            candidate = self._take()
            yield from self._bisect(candidate)
            candidate.node.visits += 1
            self._searches += 1

    def _may_search(self) -> bool:
        within = self._searches < self.settings.max_searches and self._drawn < self.settings.max_rollouts
        return within and bool(self.pool)

    def _take(self) -> Candidate:
        """Removes the candidate of highest priority from the pool; of equal ones the first."""

        def priority(candidate: Candidate) -> float:
            return candidate.quality + exploration(self._searches, candidate.node.visits, self.settings)

        best = max(self.pool, key=priority)
        self.pool.remove(best)
        return best

    def _probe(self, steps: Steps) -> Generator[RolloutRequest, Sequence[Rollout], Node]:
        """A state with its value. If it can be solved, its wrong rollouts enter the pool, each distinct one once."""
        drawn = yield RolloutRequest(self.problem, next(self._numbers), steps, self.settings.rollouts)
        self._drawn += len(drawn)
        node = Node.estimated(steps, [Rollout(one.steps, one.right and bool(one.steps)) for one in drawn])
        if node.value > 0:
            wrong = dict.fromkeys(rollout.steps for rollout in node.rollouts if not rollout.right)
            self.pool += [Candidate(node, rollout, quality(node.value, rollout, self.settings)) for rollout in wrong]
        return node

    def _bisect(self, candidate: Candidate) -> Generator[RolloutRequest, Sequence[Rollout], None]:
        """Halves a wrong rollout until its mistake lies between two states: one solvable, the other not.

        A state that can be solved is the parent of those after it. One that cannot has no children: the states before
        it, which are probed next, are its siblings.
        """
        rollout = candidate.rollout
        parent = candidate.node
        left = 0
        right = len(rollout) - 1
        while left <= right:
            middle = (left + right) // 2
            steps = parent.steps + rollout[left : middle + 1]
            is_whole = middle == len(rollout) - 1
            child = Node(steps, value=0.0) if is_whole else (yield from self._probe(steps))
            parent.children.append(child)
            if child.value > 0:
                parent = child
                left = middle + 1
            else:
                right = middle - 1


def run_trees(
    problems: Iterable[Problem],
    draw_many: Callable[[Sequence[RolloutRequest]], Sequence[Sequence[Rollout]]],
    settings: SearchConfig,
    at_a_time: int,
    made_with: Mapping[str, Any] | None = None,
    recorded: Callable[[RolloutRequest], Sequence[Rollout] | None] = lambda request: None,
) -> Iterator[Tree]:
    """The trees of problems, each as soon as it is finished; a tree that ends makes room for the next problem.

    Args:
        draw_many: answers the requests of all open trees, in their order. If it draws by the names of the draws, a tree
            does not depend on the others, nor on `at_a_time`; only the order of the trees does.
        at_a_time: open trees.
        made_with: as `TreeSearch.tree`.
        recorded: what has been drawn for a request in an earlier search, if anything. With the draws of all calls of a
            search that was interrupted, the calls from there on are those that it would have made.
    """
    if at_a_time < 1:
        raise ValueError(f"at least one tree has to be open, not {at_a_time}")
    waiting = iter(problems)
    searches: list[TreeSearch] = []
    while True:
        room = at_a_time - len(searches)
        searches += [_begun(problem, settings, recorded) for problem in itertools.islice(waiting, room)]
        ended = [search for search in searches if search.request is None]
        searches = [search for search in searches if search.request is not None]
        yield from (search.tree(made_with) for search in ended)
        if ended:
            continue
        if not searches:
            return
        answers = draw_many([search.request for search in searches if search.request])
        for search, rollouts in zip(searches, answers, strict=True):
            search.tell(rollouts)


def _begun(
    problem: Problem, settings: SearchConfig, recorded: Callable[[RolloutRequest], Sequence[Rollout] | None]
) -> TreeSearch:
    """A search, as far as it was already."""
    search = TreeSearch(problem, settings)
    while search.request and (rollouts := recorded(search.request)) is not None:
        search.tell(rollouts)
    return search


def run_tree(
    problem: Problem,
    draw: Callable[[RolloutRequest], Sequence[Rollout]],
    settings: SearchConfig,
    made_with: Mapping[str, Any] | None = None,
) -> Tree:
    """The tree of one problem; `draw` answers a request."""
    search = TreeSearch(problem, settings)
    while search.request:
        search.tell(draw(search.request))
    return search.tree(made_with)
