"""One order book: snapshot and absolute changes in, sorted levels out. Pure, no sequence rules (see feed.py)."""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable

Level = tuple[float, float]
"""Price (quote per base) and size (base); size 0 in a change removes the level."""


class Side:
    """One side, its best price at the end of a sorted list: changes are near the touch, so inserts stay cheap.

    Keys are prices for bids and negated prices for asks; in both the largest is the best.
    """

    __slots__ = ("keys", "levels", "sign", "tokens")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.keys: list[float] = []
        self.levels: dict[float, Level] = {}
        self.tokens: dict[float, str] = {}

    def set(self, level: Level, token: str | None = None) -> float | None:
        """Put a level in place; returns its key, None if nothing changed (an unknown price removed).

        `token` is the level as the exchange's checksum wants it.

        Raises:
            ValueError: price not positive and finite, or size negative or not finite.
        """
        price, size = level
        if not (0 < price < math.inf and 0 <= size < math.inf):
            raise ValueError(f"impossible level {level}")
        key = price * self.sign
        if size == 0:
            if self.levels.pop(key, None) is None:
                return None
            self.tokens.pop(key, None)
            del self.keys[bisect_left(self.keys, key)]
            return key
        if key not in self.levels:
            insort(self.keys, key)
        self.levels[key] = level
        if token is not None:
            self.tokens[key] = token
        return key

    def top(self, count: int) -> list[Level]:
        """The best `count` levels, best first."""
        levels = self.levels
        return [levels[key] for key in self.keys[: -count - 1 : -1]]

    def top_tokens(self, count: int) -> str:
        """Checksum text of the best `count` levels, best first."""
        tokens = self.tokens
        return "".join([tokens[key] for key in self.keys[: -count - 1 : -1]])

    def truncate(self, depth: int) -> None:
        """Drop all but the best `depth` levels."""
        excess = len(self.keys) - depth
        if excess > 0:
            for key in self.keys[:excess]:
                del self.levels[key]
                self.tokens.pop(key, None)
            del self.keys[:excess]


class Book:
    """Both sides of one symbol on one exchange.

    Args:
        depth: Levels to keep on each side; None: all.
    """

    __slots__ = ("asks", "bids", "depth")

    def __init__(self, depth: int | None = None) -> None:
        self.depth = depth
        self.bids = Side(1)
        self.asks = Side(-1)

    def replace(
        self,
        bids: Iterable[Level],
        asks: Iterable[Level],
        bid_tokens: Iterable[str] | None = None,
        ask_tokens: Iterable[str] | None = None,
    ) -> None:
        """Start over from a snapshot.

        Raises:
            ValueError: an impossible level.
        """
        self.bids, self.asks = Side(1), Side(-1)
        self.apply(bids, asks, 0, bid_tokens, ask_tokens)

    def apply(
        self,
        bids: Iterable[Level],
        asks: Iterable[Level],
        watched: int = 0,
        bid_tokens: Iterable[str] | None = None,
        ask_tokens: Iterable[str] | None = None,
    ) -> bool:
        """Apply changes in the order sent, then truncate; whether the best `watched` levels may have changed.

        Raises:
            ValueError: an impossible level.
        """
        touched = self._apply_side(self.bids, bids, bid_tokens, watched)
        return self._apply_side(self.asks, asks, ask_tokens, watched) or touched

    def _apply_side(self, side: Side, changes: Iterable[Level], tokens: Iterable[str] | None, watched: int) -> bool:
        floor = side.keys[-watched] if 0 < watched <= len(side.keys) else -math.inf
        touched = False
        if tokens is None:
            for level in changes:
                key = side.set(level)
                if key is not None and key >= floor:
                    touched = True
        else:
            for level, token in zip(changes, tokens, strict=True):
                key = side.set(level, token)
                if key is not None and key >= floor:
                    touched = True
        if self.depth is not None:
            side.truncate(self.depth)
        return touched

    def fault(self) -> str | None:
        """Why this cannot be a real book: a side empty, or bid not below ask. None if it can."""
        if not self.bids.keys or not self.asks.keys:
            return "a side is empty"
        bid, ask = self.bids.keys[-1], -self.asks.keys[-1]
        if bid >= ask:
            return f"bid {bid!r} is not below ask {ask!r}"
        return None

    def best(self) -> tuple[float, float] | None:
        """Best bid and ask; None while a side is empty."""
        if not self.bids.keys or not self.asks.keys:
            return None
        return self.bids.keys[-1], -self.asks.keys[-1]
