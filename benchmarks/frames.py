"""Generated book frames in exchanges' documented shapes, where no long capture exists.

A pure function of its arguments: `count` frames, a snapshot first, then changes of a book whose top wanders at random.
Each change resizes, removes or inserts a level near the top (seven in ten within the best ten), one to six levels a
frame and now and then a few more; the book keeps its number of levels, by dropping or adding its farthest one, as a
window does. A level is only ever put between two others of its side, inside the spread or at the far end: the book
never crosses. Live frames are often larger: the median of a recorded OKX `books` update is about 15 levels.

The shapes are those of the exchanges' documentation and of the few frames that were recorded, as of 2026.
"""

import bisect
import datetime
import json
import random
from collections.abc import Iterator
from typing import Any

START_MS = 1_795_000_000_000
NEAR = 20
"""Changes happen within so many best levels."""

GAP = 6
"""Ticks from one level to the next, about."""

Changes = list[tuple[int, int]]
"""Price in ticks and size in units of the last digit, best first; size 0: removed."""


class _Side:
    """Prices of one side in ticks, best first: `sign` -1 for bids, 1 for asks, keys ascend from the best."""

    def __init__(self, sign: int, best: int, levels: int, random_: random.Random) -> None:
        self.sign = sign
        self.random = random_
        self.keys: list[int] = []
        self.sizes: dict[int, int] = {}
        self.before: dict[int, int] = {}
        key = sign * best
        for _ in range(levels):
            self.keys.append(key)
            self.sizes[key] = self.size()
            key += 1 + self.below(2 * GAP)

    def below(self, limit: int) -> int:
        return int(self.random.random() * limit)

    def size(self) -> int:
        """In units of the last digit; small ones are more frequent, as they are live."""
        return 1 + int(self.random.random() ** 3 * 2_000_000)

    def put(self, key: int, size: int) -> None:
        self.before.setdefault(key, self.sizes.get(key, 0))
        if size and key not in self.sizes:
            bisect.insort(self.keys, key)
        if size:
            self.sizes[key] = size
        else:
            del self.sizes[key]
            del self.keys[bisect.bisect_left(self.keys, key)]

    def change(self, other_best: int) -> None:
        """One change near the top; `other_best` is the other side's best price in ticks."""
        rank = int(self.random.random() ** 2 * min(NEAR, len(self.keys)))
        key = self.keys[rank]
        better = self.keys[rank - 1] if rank else self.sign * other_best
        if self.random.random() < 0.7:
            self.put(key, self.size())
        elif key - better > 1 + self.below(2 * GAP):  # wide gaps fill, narrow ones open: the spread stays a spread
            self.put(key - 1 - self.below(key - better - 1), self.size())
            self.put(self.keys[-1], 0)
        else:
            self.put(self.keys[-1] + 1 + self.below(2 * GAP), self.size())
            self.put(key, 0)

    def changed(self) -> Changes:
        """What is different from the last call."""
        now = [(key, self.sizes.get(key, 0)) for key in sorted(self.before)]
        found = [(self.sign * key, size) for key, size in now if size != self.before[key]]
        self.before.clear()
        return found

    def all(self) -> Changes:
        return [(self.sign * key, self.sizes[key]) for key in self.keys]


def _walk(count: int, seed: int, levels: int, mid: int) -> Iterator[tuple[Changes, Changes]]:
    """Bids and asks of `count` frames: the whole book, then changes."""
    source = random.Random(seed)
    bids, asks = _Side(-1, mid, levels, source), _Side(1, mid + 1, levels, source)
    if count > 0:
        yield bids.all(), asks.all()
    for _ in range(count - 1):
        changes: tuple[Changes, Changes] = ([], [])
        while not any(changes):  # a level put in and taken out again is no change
            for _ in range(1 + int(source.random() * 5)):
                if source.random() < 0.5:
                    bids.change(asks.keys[0])
                else:
                    asks.change(-bids.keys[0])
            changes = bids.changed(), asks.changed()
        yield changes


def _text(units: int, digits: int) -> str:
    """Units of the last of `digits` decimals as text, without zeros at the end: `83802`, `0.00659`, `0`."""
    whole, part = divmod(units, 10**digits)
    return f"{whole}.{part:0{digits}d}".rstrip("0").rstrip(".")


def _frame(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def bybit_frames(count: int, seed: int) -> list[bytes]:
    """`orderbook.50.BTCUSDT` of Bybit v5 spot: `u` goes up by one, size `0` removes."""
    frames = []
    for number, (bids, asks) in enumerate(_walk(count, seed, 50, 7_584_870)):
        now = START_MS + 20 * number
        data = {
            "s": "BTCUSDT",
            "b": [[_text(price, 2), _text(size, 6)] for price, size in bids],
            "a": [[_text(price, 2), _text(size, 6)] for price, size in asks],
            "u": 2_876_700 + number,
            "seq": 47_474_967_817 + 6 * number,
        }
        kind = "delta" if number else "snapshot"
        frames.append(_frame({"topic": "orderbook.50.BTCUSDT", "ts": now, "type": kind, "data": data, "cts": now - 3}))
    return frames


def okx_frames(count: int, seed: int) -> list[bytes]:
    """`books` of BTC-USDT of OKX v5 as it is since 2026-06: `seqId` chained by `prevSeqId`, `checksum` always 0."""
    frames, last = [], -1
    for number, (bids, asks) in enumerate(_walk(count, seed, 400, 838_005)):
        sequence = 81_625_399_056 + 3 * number
        data = {
            "asks": [[_text(price, 1), _text(size, 8), "0", str(size % 9 + 1 if size else 0)] for price, size in asks],
            "bids": [[_text(price, 1), _text(size, 8), "0", str(size % 9 + 1 if size else 0)] for price, size in bids],
            "ts": str(START_MS + 100 * number),
            "checksum": 0,
            "seqId": sequence,
            "prevSeqId": last,
        }
        last = sequence
        channel = {"channel": "books", "instId": "BTC-USDT"}
        frames.append(_frame({"arg": channel, "action": "update" if number else "snapshot", "data": [data]}))
    return frames


def coinbase_frames(count: int, seed: int, levels: int = 1000) -> list[bytes]:
    """`l2_data` of BTC-USD of Coinbase Advanced Trade: one `sequence_num` over all frames, the acknowledgement second.

    Args:
        levels: A side; the live book of BTC-USD has some ten thousand and its snapshot more than 4 MB.
    """
    frames: list[bytes] = []

    def add(channel: str, event: dict[str, Any]) -> None:
        message = {"channel": channel, "client_id": "", "timestamp": _time(len(frames)), "sequence_num": len(frames)}
        frames.append(_frame({**message, "events": [event]}))

    for bids, asks in _walk(count - 1 if count > 1 else count, seed, levels, 6_331_025):
        kind = "update" if frames else "snapshot"
        at = _time(len(frames)) if frames else "1970-01-01T00:00:00Z"
        updates = [
            {"side": side, "event_time": at, "price_level": _text(price, 2), "new_quantity": _text(size, 8)}
            for side, changes in (("bid", bids), ("offer", asks))
            for price, size in changes
        ]
        add("l2_data", {"type": kind, "product_id": "BTC-USD", "updates": updates})
        if len(frames) == 1 and count > 1:
            add("subscriptions", {"subscriptions": {"level2": ["BTC-USD"]}})
    return frames


def _time(number: int) -> str:
    at = datetime.datetime.fromtimestamp((START_MS + 50 * number) / 1000, datetime.UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}665Z"
