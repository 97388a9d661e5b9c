"""Two-player zero-sum games in sequence form: a tree that is walked once becomes a few arrays.

A sequence is what a player has done so far: 0 is nothing, and every action of every information set is one. The
information sets of a player are ordered by level, the number of own decisions before them, so that all of a level are
computed at once. Rows have as many actions as the largest set has, and `legal` says which of them there are:

    level 0    I0 [a b -]  I1 [a b c]           sequence of action a of set i: 1 + i * A + a
    level 1       I2 [a b -]                    parents: the sequence that leads to a set
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mmeureka_jax.errors import UserError

MOST_HISTORIES = 2_000_000  # of a tree that is walked; some minutes in Python


class State(Protocol):
    """A history of a game, as the walk needs it."""

    def is_terminal(self) -> bool: ...

    def utility(self) -> float:
        """What player 1 gets at the end."""
        ...

    def chances(self) -> Sequence[tuple[int, float]] | None:
        """Outcomes and their probabilities where chance moves; None where a player does."""
        ...

    def player(self) -> int:
        """0 or 1."""
        ...

    def key(self) -> str:
        """What the player knows."""
        ...

    def legal(self) -> Sequence[int]:
        """Actions in order; the same for all states with the same key."""
        ...

    def child(self, action: int) -> State: ...


@dataclass(frozen=True)
class Player:
    """The decisions of a player.

    Attributes:
        legal: [I, A] which actions there are.
        parents: [I] the sequence that leads to each information set.
        histories: [I] how many histories the player cannot tell apart.
        levels: first set of each level and the one after its last, top to bottom.
        keys: what the player knows in each set.
        actions: the numbers that the game gives to the legal actions of each set.
    """

    legal: np.ndarray
    parents: np.ndarray
    histories: np.ndarray
    levels: tuple[tuple[int, int], ...]
    keys: tuple[str, ...]
    actions: tuple[tuple[int, ...], ...]

    @property
    def sequences(self) -> int:
        """Length of a plan, with sequences that only fill up rows."""
        return 1 + self.legal.size


@dataclass(frozen=True)
class Game:
    """A game in sequence form.

    Attributes:
        players: the decisions of player 1 and of player 2.
        rows, columns: [N] pairs of sequences of player 1 and of player 2, each once, at the end of some history.
        payoffs: [N] float64, the utility of player 1 times the probability of chance, summed over these histories.
    """

    players: tuple[Player, Player]
    rows: np.ndarray
    columns: np.ndarray
    payoffs: np.ndarray


@dataclass
class _Set:
    """An information set while the tree is walked; a sequence is a set and the place of an action, None: nothing."""

    parent: tuple[str, int] | None
    level: int
    actions: tuple[int, ...]
    histories: int = 0


@dataclass
class _Walk:
    """What a walk has found: sets of each player by their keys in order, and payoffs by pairs of sequences."""

    name: str
    sets: tuple[dict[str, _Set], dict[str, _Set]] = field(default_factory=lambda: ({}, {}))
    payoffs: dict[tuple[tuple[str, int] | None, ...], float] = field(default_factory=dict)
    states: int = 0


def build(name: str, root: State) -> Game:
    """Walks a game's tree.

    Raises:
        UserError: a tree that is too large, players that forget, or a player without a decision.
    """
    walk = _Walk(name)
    stack: list[tuple[State, float, tuple[tuple[str, int] | None, ...]]] = [(root, 1.0, (None, None))]
    while stack:
        state, chance, sequences = stack.pop()
        walk.states += 1
        if walk.states > MOST_HISTORIES:
            raise UserError(f"game {name}: the tree has more than {MOST_HISTORIES:,} histories; take a smaller game")
        if state.is_terminal():
            walk.payoffs[sequences] = walk.payoffs.get(sequences, 0.0) + chance * state.utility()
            continue
        outcomes = state.chances()
        if outcomes is not None:
            stack += [(state.child(outcome), chance * p, sequences) for outcome, p in reversed(outcomes)]
            continue
        player = state.player()
        key = _visit(walk, state, sequences[player])
        for place, action in reversed(list(enumerate(state.legal()))):
            step = ((key, place), sequences[1]) if player == 0 else (sequences[0], (key, place))
            stack.append((state.child(action), chance, step))
    return _arrays(walk)


def _visit(walk: _Walk, state: State, parent: tuple[str, int] | None) -> str:
    """Counts a history of its information set."""
    sets = walk.sets[state.player()]
    key = state.key()
    actions = tuple(state.legal())
    if key not in sets:
        level = 0 if parent is None else sets[parent[0]].level + 1
        sets[key] = _Set(parent, level, actions)
    found = sets[key]
    if found.parent != parent or found.actions != actions:
        raise UserError(f"game {walk.name}: a player forgets at {key!r}; only games with perfect recall can be solved")
    found.histories += 1
    return key


def _arrays(walk: _Walk) -> Game:
    if not all(walk.sets):
        raise UserError(f"game {walk.name}: a player has no decision; take a game that two play")
    players = tuple(_player(sets) for sets in walk.sets)
    places = [{key: index for index, key in enumerate(player.keys)} for player in players]

    def sequence(of: int, step: tuple[str, int] | None) -> int:
        return 0 if step is None else 1 + places[of][step[0]] * players[of].legal.shape[1] + step[1]

    pairs = sorted((sequence(0, row), sequence(1, column), value) for (row, column), value in walk.payoffs.items())
    return Game(
        players=(players[0], players[1]),
        rows=np.array([row for row, _, _ in pairs]),
        columns=np.array([column for _, column, _ in pairs]),
        payoffs=np.array([value for _, _, value in pairs], np.float64),
    )


def _player(sets: dict[str, _Set]) -> Player:
    keys = sorted(sets, key=lambda key: sets[key].level)  # stable: in the order of the walk within a level
    places = {key: index for index, key in enumerate(keys)}
    width = max(len(sets[key].actions) for key in keys)
    levels = np.array([sets[key].level for key in keys])
    bounds = np.searchsorted(levels, np.arange(levels[-1] + 2))
    parents = [sets[key].parent for key in keys]
    return Player(
        legal=np.array([[place < len(sets[key].actions) for place in range(width)] for key in keys]),
        parents=np.array([0 if parent is None else 1 + places[parent[0]] * width + parent[1] for parent in parents]),
        histories=np.array([sets[key].histories for key in keys]),
        levels=tuple((int(start), int(end)) for start, end in zip(bounds[:-1], bounds[1:], strict=True)),
        keys=tuple(keys),
        actions=tuple(sets[key].actions for key in keys),
    )
