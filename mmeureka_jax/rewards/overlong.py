"""The penalty for answers that come close to the length limit."""

from __future__ import annotations


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """0 for up to `limit - buffer` tokens, then falling linearly to -1 at `limit`.

    Source: soft overlong punishment, DAPO (arXiv 2503.14476), equation 13.
    """
    return -min(max(length - (limit - buffer), 0) / buffer, 1.0)
