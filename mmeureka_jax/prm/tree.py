"""The tree of one problem's search: states with their Monte-Carlo values, and its form as a row of JSON.

    {"id", "question", "answer", "made_with", "root": NODE}
    NODE: {"steps", "value", "visits", "rollouts": [{"steps", "right"}], "children": [NODE]}

Source: MM-PRM (arXiv 2505.13427), after OmegaPRM (arXiv 2406.06592). The published code stores the distinct rollouts
only, and of a node's steps those that it adds to its parent's; here each node has all rollouts, as they were drawn, and
all steps so far.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import expect

Steps = tuple[str, ...]


@dataclass(frozen=True)
class Rollout:
    """A sampled completion of a solution.

    Attributes:
        steps: what was drawn after the state's steps; the last is the final answer. Empty: the response had no steps.
        right: whether its final answer is right.
    """

    steps: Steps
    right: bool


@dataclass
class Node:
    """A state of the search: a solution's steps so far.

    Attributes:
        steps: from the first step on; none at the root.
        value: the share of right rollouts, an estimate of the chance that the policy solves the problem from here.
        visits: how many searches started from one of its rollouts.
        rollouts: in the order of their sample numbers; none where the value was known without any.
        children: in the order in which they were made.
    """

    steps: Steps
    value: float
    visits: int = 0
    rollouts: list[Rollout] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    @classmethod
    def estimated(cls, steps: Steps, rollouts: Sequence[Rollout]) -> Node:
        """The state with its Monte-Carlo value. Each distinct right rollout is a child, a leaf with value 1."""
        right = [rollout.steps for rollout in rollouts if rollout.right]
        leaves = [cls(steps + rest, value=1.0) for rest in dict.fromkeys(right)]
        return cls(steps, len(right) / len(rollouts), rollouts=list(rollouts), children=leaves)

    def segment(self, child: Node) -> Steps:
        """The steps that a child adds."""
        return child.steps[len(self.steps) :]

    def walk(self) -> Iterator[Node]:
        """The node and all below it, depth first, children in their order."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)


@dataclass
class Tree:
    """A finished search.

    Attributes:
        id, question, answer: the problem's.
        made_with: everything that the tree depends on, as JSON.
    """

    id: str
    question: str
    answer: str
    root: Node
    made_with: Mapping[str, Any] = field(default_factory=dict)

    @property
    def searches(self) -> int:
        return sum(node.visits for node in self.root.walk())

    @property
    def rollouts(self) -> int:
        """How many were drawn."""
        return sum(len(node.rollouts) for node in self.root.walk())

    def row(self) -> dict[str, Any]:
        """The tree as JSON."""
        row = {"id": self.id, "question": self.question, "answer": self.answer, "made_with": dict(self.made_with)}
        return row | {"root": _row_of(self.root)}

    def to_json(self) -> str:
        """The row of the tree, in one line."""
        return json.dumps(self.row(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str, where: str) -> Tree:
        """The tree of a row.

        Args:
            where: the row's place for a message, such as `trees.jsonl:4`.

        Raises:
            UserError: the row is torn, or is not that of a tree.
        """
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: the row is torn or is no JSON ({error.msg} at column {error.colno}); remove the line, and"
                " the same search makes its tree again"
            ) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, absurd nesting
            raise UserError(f"{where}: not the row of a tree ({brief(error)}); remove the line") from None
        if not isinstance(row, dict) or "root" not in row:
            raise UserError(f"{where}: not the row of a tree, which is an object with a 'root'; is it another file's?")
        root = _node_of(row["root"], f"{where}: root")
        if root.steps:
            raise UserError(f"{where}: root: 'steps' must be empty, as a search starts from the problem")
        return cls(
            id=expect(where, row, "id", str, None),
            question=expect(where, row, "question", str, None),
            answer=expect(where, row, "answer", str, None),
            root=root,
            made_with=expect(where, row, "made_with", dict, None),
        )


def _row_of(node: Node) -> dict[str, Any]:
    return {
        "steps": node.steps,
        "value": node.value,
        "visits": node.visits,
        "rollouts": [{"steps": rollout.steps, "right": rollout.right} for rollout in node.rollouts],
        "children": [_row_of(child) for child in node.children],
    }


def _node_of(row: Any, where: str) -> Node:
    """The node of its row, and all below it."""
    node = Node(
        _steps(_object(row, where), where),
        expect(where, row, "value", (int, float), None),
        expect(where, row, "visits", int, None),
        [_rollout_of(one, place) for one, place in _listed(row, "rollouts", where)],
        [_node_of(one, place) for one, place in _listed(row, "children", where)],
    )
    if not 0 <= node.value <= 1:
        raise UserError(f"{where}: 'value' is {node.value}, expected a share between 0 and 1")
    if node.visits < 0:
        raise UserError(f"{where}: 'visits' is {node.visits}, expected 0 or more")
    for number, child in enumerate(node.children):
        if child.steps[: len(node.steps)] != node.steps or child.steps == node.steps:
            raise UserError(f"{where}.children[{number}]: its steps do not continue those of its parent")
    return node


def _rollout_of(row: Any, where: str) -> Rollout:
    return Rollout(_steps(_object(row, where), where), expect(where, row, "right", bool, None))


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    return row


def _listed(row: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[Any, str]]:
    """The items of a list, each with its place."""
    for number, item in enumerate(expect(where, row, key, list, None)):
        yield item, f"{where}.{key}[{number}]"


def _steps(row: Mapping[str, Any], where: str) -> Steps:
    for step, place in _listed(row, "steps", where):
        if not isinstance(step, str):
            raise UserError(f"{place}: expected text, found {type(step).__name__}")
    return tuple(row["steps"])
