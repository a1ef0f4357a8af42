"""One order book: snapshot and absolute changes in, sorted levels out. Pure, no sequence rules (see keeper.py)."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

Level = tuple[float, float]
"""Price (quote per base) and size (base); size 0 in a change removes the level."""

_INFINITY = math.inf
_isfinite = math.isfinite


class Side:
    """One side, its best price at the end of a sorted list: changes are near the touch, so inserts stay cheap.

    Keys are prices for bids and negated prices for asks; in both the largest is the best.
    """

    __slots__ = ("_best", "_text", "keys", "levels", "sign", "tokens")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.keys: list[float] = []
        self.levels: dict[float, Level] = {}
        self.tokens: dict[float, bytes] = {}
        # Of the best levels, made anew when one of them may have changed: most changes concern one side only.
        self._best: list[Level] | None = None
        self._text: list[bytes] | None = None

    def replace(self, levels: Sequence[Level], tokens: Sequence[bytes] | None = None) -> None:
        """Start over with these levels, in any order; a later one of the same price counts.

        Raises:
            ValueError: price not positive and finite, or size negative or not finite.
        """
        self.keys, self.levels, self.tokens = [], {}, {}
        self._best = self._text = None
        if tokens is not None or not levels or not self._take_whole(levels):
            self.change(levels, 0, tokens)

    def _take_whole(self, levels: Sequence[Level]) -> bool:
        """A snapshot at once instead of level by level; False if it needs a closer look."""
        prices, sizes = zip(*levels, strict=True)
        if not (_isfinite(sum(prices)) and _isfinite(sum(sizes)) and min(prices) > 0 and min(sizes) > 0):
            return False  # not finite: the sum of an infinity or of a NaN is not
        self.levels = dict(zip(prices if self.sign > 0 else [-price for price in prices], levels, strict=True))
        self.keys = sorted(self.levels)
        return True

    def change(self, changes: Sequence[Level], watched: int, tokens: Sequence[bytes] | None = None) -> bool:
        """Apply changes in the order sent; whether one of the best `watched` levels has changed.

        `tokens` are the levels as the exchange's checksum wants them.

        Raises:
            ValueError: price not positive and finite, or size negative or not finite.
        """
        keys, levels, sign = self.keys, self.levels, self.sign
        floor = keys[-watched] if 0 < watched <= len(keys) else -_INFINITY
        touched = False
        number = -1
        for level in changes:
            number += 1
            price, size = level
            if not (0 < price < _INFINITY and 0 <= size < _INFINITY):
                raise ValueError(f"impossible level {level}")
            key = price if sign > 0 else -price
            if size:
                known = levels.get(key)
                if known is None:
                    insort(keys, key)
                elif known == level and tokens is None:
                    continue
                levels[key] = level
                if tokens is not None:
                    self.tokens[key] = tokens[number]
            else:
                if levels.pop(key, None) is None:
                    continue  # an unknown price removed: normal
                if tokens is not None:
                    self.tokens.pop(key, None)
                del keys[bisect_left(keys, key)]
            if key >= floor:
                touched = True
        if touched:
            self._best = None
        if tokens is not None:
            self._text = None
        return touched

    def best(self, count: int) -> list[Level]:
        """The best `count` levels, best first; always the same `count`, the one that `change` watches.

        The list is the same object until one of them changes: not to be changed by the caller.
        """
        best = self._best
        if best is None:
            best = self._best = self.top(count)
        return best

    def top(self, count: int) -> list[Level]:
        """The best `count` levels, best first."""
        levels = self.levels
        return [levels[key] for key in self.keys[: -count - 1 : -1]]

    def top_tokens(self, count: int) -> list[bytes]:
        """Checksum texts of the best `count` levels, best first; always the same `count`."""
        text = self._text
        if text is None:
            tokens = self.tokens
            text = self._text = [tokens.get(key, b"") for key in self.keys[: -count - 1 : -1]]
        return text

    def truncate(self, depth: int) -> None:
        """Drop all but the best `depth` levels."""
        excess = len(self.keys) - depth
        if excess > 0:
            for key in self.keys[:excess]:
                del self.levels[key]
                self.tokens.pop(key, None)
            del self.keys[:excess]
            self._best = self._text = None


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
        bid_tokens: Sequence[bytes] | None = None,
        ask_tokens: Sequence[bytes] | None = None,
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
        bid_tokens: Sequence[bytes] | None = None,
        ask_tokens: Sequence[bytes] | None = None,
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
