"""Leduc poker: two suits of three ranks, two rounds, a public card between them, at most two raises a round.

An ante of one chip; raises of two chips in the first round and of four in the second. A pair with the public card wins,
then the higher rank. Utilities are chips, as OpenSpiel's game leduc_poker pays them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FOLD = 0
CALL = 1
RAISE = 2
CARDS = 6  # two of each rank: card // 2 is the rank
RAISES = (2, 4)  # chips, by round
MOST_RAISES = 2  # in a round


@dataclass(frozen=True)
class LeducState:
    """A history: cards of player 1, of player 2 and the public one, and the moves of each round, letters f, c and r."""

    cards: tuple[int, ...] = ()
    first: str = ""
    second: str = ""

    def is_terminal(self) -> bool:
        return "f" in self.first + self.second or _is_over(self.second)

    def utility(self) -> float:
        """Chips that player 1 wins."""
        chips = self._chips()
        if "f" in self.first + self.second:
            loser = (len(self.second or self.first) - 1) % 2
            return float(-chips[0] if loser == 0 else chips[1])
        strength = [_strength(card, self.cards[2]) for card in self.cards[:2]]
        if strength[0] == strength[1]:
            return 0.0
        return float(chips[1] if strength[0] > strength[1] else -chips[0])

    def chances(self) -> Sequence[tuple[int, float]] | None:
        if len(self.cards) == 3 or (len(self.cards) == 2 and not _is_over(self.first)):
            return None
        left = [card for card in range(CARDS) if card not in self.cards]
        return [(card, 1 / len(left)) for card in left]

    def player(self) -> int:
        return len(self._round()) % 2

    def key(self) -> str:
        """What the player has seen; suits too, though they decide nothing, as in OpenSpiel's game."""
        public = str(self.cards[2]) if len(self.cards) == 3 else "-"
        return f"{self.cards[self.player()]}{public} {self.first}/{self.second}"

    def legal(self) -> Sequence[int]:
        moves = self._round()
        folding = [FOLD] if moves.endswith("r") else []
        raising = [RAISE] if moves.count("r") < MOST_RAISES else []
        return (*folding, CALL, *raising)

    def child(self, action: int) -> LeducState:
        if self.chances() is not None:
            return LeducState((*self.cards, action), self.first, self.second)
        move = "fcr"[action]
        if len(self.cards) == 3:
            return LeducState(self.cards, self.first, self.second + move)
        return LeducState(self.cards, self.first + move, self.second)

    def _round(self) -> str:
        return self.second if len(self.cards) == 3 else self.first

    def _chips(self) -> list[int]:
        """What each player has put in."""
        chips = [1, 1]
        for moves, size in zip((self.first, self.second), RAISES, strict=True):
            for turn, move in enumerate(moves):
                if move == "c":
                    chips[turn % 2] = max(chips)
                if move == "r":
                    chips[turn % 2] = max(chips) + size
        return chips


def _is_over(moves: str) -> bool:
    """Whether a round ends with these moves: all have called, and both have moved."""
    return len(moves) >= 2 and moves.endswith("c")


def _strength(card: int, public: int) -> tuple[bool, int]:
    return card // 2 == public // 2, card // 2
