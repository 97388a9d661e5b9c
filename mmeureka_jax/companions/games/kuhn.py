"""Kuhn poker: three cards, an ante of one chip, one bet of one chip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PASS = 0
BET = 1
CARDS = 3
ENDS = ("pp", "bp", "bb", "pbp", "pbb")


@dataclass(frozen=True)
class KuhnState:
    """A history: the cards dealt so far, that of player 1 first, and a letter for each move, p or b."""

    cards: tuple[int, ...] = ()
    moves: str = ""

    def is_terminal(self) -> bool:
        return self.moves in ENDS

    def utility(self) -> float:
        """Chips that player 1 wins."""
        if self.moves == "bp":
            return 1.0
        if self.moves == "pbp":
            return -1.0
        stake = 1.0 if self.moves == "pp" else 2.0
        return stake if self.cards[0] > self.cards[1] else -stake

    def chances(self) -> Sequence[tuple[int, float]] | None:
        if len(self.cards) == 2:
            return None
        left = [card for card in range(CARDS) if card not in self.cards]
        return [(card, 1 / len(left)) for card in left]

    def player(self) -> int:
        return len(self.moves) % 2

    def key(self) -> str:
        return f"{self.cards[self.player()]}{self.moves}"

    def legal(self) -> Sequence[int]:
        return (PASS, BET)

    def child(self, action: int) -> KuhnState:
        if len(self.cards) < 2:
            return KuhnState((*self.cards, action), self.moves)
        return KuhnState(self.cards, self.moves + "pb"[action])
