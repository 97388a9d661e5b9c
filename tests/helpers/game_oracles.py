"""Games the slow and plain way: recursion over histories with dictionaries, and best responses among all pure plans."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np


def policy_tables(game, policies):
    """The policies [I, A] of both players as {key: {action: probability}}, one table for each player."""
    return [
        {
            key: dict(zip(actions, row.tolist(), strict=False))
            for key, actions, row in zip(player.keys, player.actions, policy, strict=True)
        }
        for player, policy in zip(game.players, policies, strict=True)
    ]


def value(state, tables):
    """What player 1 gets in expectation."""
    if state.is_terminal():
        return state.utility()
    outcomes = state.chances()
    if outcomes is not None:
        return sum(chance * value(state.child(outcome), tables) for outcome, chance in outcomes)
    policy = tables[state.player()][state.key()]
    return sum(p * value(state.child(action), tables) for action, p in policy.items() if p)


def brute_force_nash_conv(root, game, tables):
    """NashConv by trying every pure plan of each player."""
    total = 0.0
    for player, of in enumerate(game.players):
        sign = 1 if player == 0 else -1
        best = -np.inf
        for choice in itertools.product(*of.actions):
            pure = {key: {action: 1.0} for key, action in zip(of.keys, choice, strict=True)}
            best = max(best, sign * value(root, [pure, tables[1]] if player == 0 else [tables[0], pure]))
        total += best
    return total


class RegretMatching:
    """CFR and its forms, a history after another; momentum is added once for every history, or once for every set."""

    def __init__(self, root, *, plus=True, mu=0.0, restart=30, per_history=True, alternating=True):
        self.root = root
        self.plus = plus
        self.mu = mu
        self.restart = restart
        self.per_history = per_history
        self.alternating = alternating
        self.regrets = [defaultdict(dict), defaultdict(dict)]
        self.references = [{}, {}]
        self.tables = [{}, {}]
        self._begin(root)

    def _begin(self, state):
        """Uniform policies and no regrets."""
        if state.is_terminal():
            return
        outcomes = state.chances()
        if outcomes is None:
            legal = state.legal()
            self.tables[state.player()][state.key()] = {action: 1 / len(legal) for action in legal}
            self.regrets[state.player()][state.key()] = {action: 0.0 for action in legal}
        for action in state.legal() if outcomes is None else [outcome for outcome, _ in outcomes]:
            self._begin(state.child(action))

    def iterate(self, number):
        played = [dict(self.tables[0]), dict(self.tables[1])]
        for player in range(2):
            before = {key: dict(values) for key, values in self.regrets[player].items()}
            if number == 2 or (number + 1) % self.restart == 0:
                self.references[player] = before
            tables = self.tables if self.alternating else played
            tables = [tables[0], tables[1]]
            seen = set()
            self._collect(self.root, player, 1.0, tables, (before, seen))
            for key, values in self.regrets[player].items():
                if self.plus:
                    values.update({action: max(value, 0.0) for action, value in values.items()})
                positive = {action: max(value, 0.0) for action, value in values.items()}
                total = sum(positive.values())
                self.tables[player][key] = {
                    action: value / total if total > 0 else 1 / len(positive) for action, value in positive.items()
                }

    def _collect(self, state, player, reach, tables, memory):
        """Adds the regrets of every history to those of its set, and returns what the player gets."""
        if state.is_terminal():
            return state.utility() if player == 0 else -state.utility()
        outcomes = state.chances()
        if outcomes is not None:
            return sum(p * self._collect(state.child(o), player, reach * p, tables, memory) for o, p in outcomes)
        key = state.key()
        policy = tables[state.player()][key]
        if state.player() != player:
            return sum(p * self._collect(state.child(a), player, reach * p, tables, memory) for a, p in policy.items())
        values = {a: self._collect(state.child(a), player, reach, tables, memory) for a in policy}
        mean = sum(policy[action] * values[action] for action in policy)
        before, seen = memory
        drawn = self.per_history or key not in seen
        seen.add(key)
        for action in policy:
            reference = self.references[player].get(key, {}).get(action, 0.0)
            momentum = self.mu * (reference - before[key][action]) if drawn else 0.0
            self.regrets[player][key][action] += reach * (values[action] - mean) + momentum
        return mean
