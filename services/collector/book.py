"""One order book: snapshot and absolute changes in, sorted levels out. Pure, no sequence rules (see keeper.py)."""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

Level = tuple[float, float]
"""Price (quote per base) and size (base); size 0 in a change removes the level."""

_INFINITY = math.inf


class Side:
    """One side, its best price at the end of a sorted list: changes are near the touch, so inserts stay cheap.

    Keys are prices for bids and negated prices for asks; in both the largest is the best.
    """

    __slots__ = ("_text", "keys", "levels", "sign", "tokens")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.keys: list[float] = []
        self.levels: dict[float, Level] = {}
        self.tokens: dict[float, str] = {}
        self._text: str | None = None  # of the best levels' tokens; made anew when one of them changes

    def replace(self, levels: Iterable[Level], tokens: Sequence[str] | None = None) -> None:
        """Start over with these levels, in any order; a later one of the same price counts.

        Raises:
            ValueError: price not positive and finite, or size negative or not finite.
        """
        sign = self.sign
        found: dict[float, Level] = {}
        for level in levels:
            price, size = level
            if not (0 < price < _INFINITY and 0 <= size < _INFINITY):
                raise ValueError(f"impossible level {level}")
            if size:
                found[price * sign] = level
            else:
                found.pop(price * sign, None)
        self.levels = found
        self.keys = sorted(found)
        self.tokens = {}
        self._text = None
        if tokens is not None:
            for (price, size), token in zip(levels, tokens, strict=True):
                if size:
                    self.tokens[price * sign] = token

    def change(self, changes: Iterable[Level], watched: int, tokens: Sequence[str] | None = None) -> bool:
        """Apply changes in the order sent; whether one of the best `watched` levels has changed.

        `tokens` are the levels as the exchange's checksum wants them.

        Raises:
            ValueError: price not positive and finite, or size negative or not finite.
        """
        keys, levels, sign = self.keys, self.levels, self.sign
        floor = keys[-watched] if 0 < watched <= len(keys) else -_INFINITY
        touched = False
        for number, level in enumerate(changes):
            price, size = level
            if not (0 < price < _INFINITY and 0 <= size < _INFINITY):
                raise ValueError(f"impossible level {level}")
            key = price * sign
            if size:
                known = levels.get(key)
                if known is None:
                    insort(keys, key)
                levels[key] = level
                if tokens is not None:
                    self.tokens[key] = tokens[number]
                    self._text = None
                elif known == level:
                    continue
            else:
                if levels.pop(key, None) is None:
                    continue  # an unknown price removed: normal
                if tokens is not None:
                    self.tokens.pop(key, None)
                    self._text = None
                del keys[bisect_left(keys, key)]
            if key >= floor:
                touched = True
        return touched

    def top(self, count: int) -> list[Level]:
        """The best `count` levels, best first."""
        levels = self.levels
        return [levels[key] for key in self.keys[: -count - 1 : -1]]

    def top_tokens(self, count: int) -> str:
        """Checksum text of the best `count` levels, best first; always the same count for one side."""
        text = self._text
        if text is None:
            tokens = self.tokens
            text = self._text = "".join([tokens[key] for key in self.keys[: -count - 1 : -1]])
        return text

    def truncate(self, depth: int) -> None:
        """Drop all but the best `depth` levels."""
        excess = len(self.keys) - depth
        if excess > 0:
            for key in self.keys[:excess]:
                del self.levels[key]
                self.tokens.pop(key, None)
            del self.keys[:excess]
            self._text = None


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
        bids: Sequence[Level],
        asks: Sequence[Level],
        bid_tokens: Sequence[str] | None = None,
        ask_tokens: Sequence[str] | None = None,
    ) -> None:
        """Start over from a snapshot.

        Raises:
            ValueError: an impossible level.
        """
        self.bids.replace(bids, bid_tokens)
        self.asks.replace(asks, ask_tokens)
        self._truncate()

    def apply(
        self,
        bids: Sequence[Level],
        asks: Sequence[Level],
        watched: int = 0,
        bid_tokens: Sequence[str] | None = None,
        ask_tokens: Sequence[str] | None = None,
    ) -> bool:
        """Apply changes in the order sent, then truncate; whether one of the best `watched` levels has changed.

        Raises:
            ValueError: an impossible level.
        """
        touched = bool(bids) and self.bids.change(bids, watched, bid_tokens)
        if asks and self.asks.change(asks, watched, ask_tokens):
            touched = True
        if self.depth is not None:
            self._truncate()
        return touched

    def _truncate(self) -> None:
        depth = self.depth
        if depth is not None:
            if len(self.bids.keys) > depth:
                self.bids.truncate(depth)
            if len(self.asks.keys) > depth:
                self.asks.truncate(depth)

    def fault(self) -> str | None:
        """Why this cannot be a real book: a side empty, or bid not below ask. None if it can."""
        bids, asks = self.bids.keys, self.asks.keys
        if not bids or not asks:
            return "a side is empty"
        if bids[-1] >= -asks[-1]:
            return f"bid {bids[-1]!r} is not below ask {-asks[-1]!r}"
        return None

    def best(self) -> tuple[float, float] | None:
        """Best bid and ask; None while a side is empty."""
        if not self.bids.keys or not self.asks.keys:
            return None
        return self.bids.keys[-1], -self.asks.keys[-1]
