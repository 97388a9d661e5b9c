"""Games of OpenSpiel, an optional dependency: its trees become arrays once, and it is not needed afterwards."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmeureka_jax.companions.games.trees import Game, build
from mmeureka_jax.config.reading import did_you_mean
from mmeureka_jax.errors import UserError

BUILT_IN = ("kuhn", "leduc", "rps", "random")  # games that do not need it


@dataclass(frozen=True)
class SpielState:
    """A state of OpenSpiel, as the walk over a tree needs it."""

    state: Any

    def is_terminal(self) -> bool:
        return self.state.is_terminal()

    def utility(self) -> float:
        return self.state.returns()[0]

    def chances(self) -> Sequence[tuple[int, float]] | None:
        return self.state.chance_outcomes() if self.state.is_chance_node() else None

    def player(self) -> int:
        return self.state.current_player()

    def key(self) -> str:
        return self.state.information_state_string()

    def legal(self) -> Sequence[int]:
        return self.state.legal_actions()

    def child(self, action: int) -> SpielState:
        return SpielState(self.state.child(action))


def load_spiel_game(name: str) -> Any:
    """A game of OpenSpiel for two, zero-sum, with simultaneous moves taken in turn.

    Args:
        name: with its parameters, such as `goofspiel(imp_info=True,num_cards=4,points_order=descending)`.

    Raises:
        UserError: OpenSpiel is not installed, it knows no such game, or the game is not for two or not zero-sum.
    """
    spiel = _pyspiel(name)
    known = spiel.registered_names()
    kind, _, _ = name.partition("(")
    if kind not in known:
        guess = did_you_mean(kind, [*BUILT_IN, *known])
        raise UserError(f"game {name!r} is neither built in nor one of OpenSpiel's{guess}")
    try:
        game = spiel.load_game_as_turn_based(name)
    except (spiel.SpielError, RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise UserError(
            f"game {name!r} is not built in ({', '.join(BUILT_IN)}), and OpenSpiel cannot load it: {first}"
        ) from error
    facts = game.get_type()
    if game.num_players() != 2:
        raise UserError(f"game {name!r} is for {game.num_players()} players; the methods are for two")
    if facts.utility != spiel.GameType.Utility.ZERO_SUM:
        raise UserError(f"game {name!r} is not zero-sum; the methods are for zero-sum games")
    if facts.chance_mode == spiel.GameType.ChanceMode.SAMPLED_STOCHASTIC or not facts.provides_information_state_string:
        raise UserError(f"game {name!r} does not list its chances or what players know; take another game")
    return game


def spiel_game(name: str) -> Game:
    """The arrays of a game of OpenSpiel; errors as `load_spiel_game` and `build`."""
    return build(name, SpielState(load_spiel_game(name).new_initial_state()))


def _pyspiel(name: str) -> types.ModuleType:
    try:
        import pyspiel
    except ImportError as error:
        raise UserError(
            f"game {name!r} is not built in ({', '.join(BUILT_IN)}); games of OpenSpiel need it installed:\n"
            "  pip install 'mmeureka_jax[games]'"
        ) from error
    return pyspiel
