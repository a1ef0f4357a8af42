"""Damaged copies of a recording through the feed: does a live book ever differ from the true one?

The truth is the undamaged recording through the same feed (which `arb verify` has checked by the exchange's own
checksums, ids and trade numbers). A damaged copy has one to three faults: frames dropped, repeated, put in another
order, cut, or with one bit flipped. After each frame that is delivered, a book that is live must be the true one of
that moment. At the end the connection is made again, and every book must come back.

What a protocol cannot show is counted apart ("unseen") and not compared until the next snapshot: a price or size with
a flipped bit where no checksum covers it (TLS excludes that on the way), and updates lost or swapped where nothing
chains them (Coinbase Exchange).
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from services.collector.book import Book, Level
from services.collector.exchanges.base import MALFORMED, Delta, Event, Exchange, Snapshot
from services.collector.feed import Feed
from services.collector.keeper import Timing
from shared.errors import FeedError, UsageError

FAULTS = ("drop", "repeat", "reorder", "cut", "flip")
COMPARED = 10
"""Levels a side that are compared: those that are published."""

Tops = tuple[list[Level], list[Level]]


class Item(NamedTuple):
    """One frame of a recording, `native` for a REST snapshot; `number` is its place in the undamaged one."""

    number: int
    native: str | None
    frame: bytes


@dataclass(slots=True)
class Outcome:
    """Sums over many runs."""

    runs: int = 0
    compared: int = 0
    doubted: int = 0
    unseen: int = 0
    wrong: int = 0
    not_recovered: int = 0
    first_wrong: str | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Damaged(NamedTuple):
    """A damaged copy and, by frame number, the symbols of which nobody could tell from then on that they are wrong."""

    items: list[Item]
    unseen: dict[int, set[str]]


class Trials:
    """All that is needed for runs over one recording."""

    def __init__(self, exchange: Exchange, items: Sequence[Item]) -> None:
        self._exchange = exchange
        self._items = list(items)
        self._known: dict[int, list[Event]] = {}
        self._truth: dict[int, dict[str, Tops]] = {}
        feed = self._feed()
        for item in self._items:
            self._give(feed, item)
            self._truth[item.number] = {
                native: _tops(book) for native in self._about(item) if (book := feed.live_book(native)) is not None
            }
        self._last = _all(feed)
        # Faults before the first snapshot are those of a connection that never stood: begin after it.
        self._first = next(
            (i for i, item in enumerate(self._items) if any(type(e) is Snapshot for e in self._events(item))), 0
        )

    def last(self) -> dict[str, tuple[str, Tops]]:
        """State and best levels of each book at the end of the undamaged recording, by canonical symbol."""
        return dict(self._last)

    @property
    def useful(self) -> bool:
        """Whether there is a book that could be damaged."""
        return bool(self._last) and self._first + 1 < len(self._items)

    def run(self, seed: int, outcome: Outcome) -> None:
        """One damaged copy; adds to `outcome`."""
        draw = random.Random(seed)
        damaged = self._damage(draw)
        outcome.runs += 1
        feed = self._feed()
        marks, unseen = dict(damaged.unseen), set[str]()
        reached: dict[str, int] = {}
        doubts = 0
        for item in damaged.items:
            for number in [n for n in marks if n <= item.number]:
                unseen |= marks.pop(number)
            if not self._give(feed, item):
                doubts += 1
                unseen.clear()  # all books are gone: what comes next is a new one
            for event in self._said(item):
                if not isinstance(event, Snapshot | Delta) or event.symbol not in self._about(item):
                    continue
                symbol = event.symbol
                reached[symbol] = max(reached.get(symbol, -1), item.number)
                if isinstance(event, Snapshot) and not self._exchange.unchained:
                    unseen.discard(symbol)
                true = self._truth[reached[symbol]].get(symbol)
                book = feed.live_book(symbol)
                if true is None or symbol in unseen or book is None:
                    continue
                outcome.compared += 1
                if _tops(book) != true:
                    outcome.wrong += 1
                    outcome.first_wrong = outcome.first_wrong or f"seed {seed}: {symbol} at frame {item.number}"
        counts = feed.counts
        doubts += counts.gaps + counts.checksum_failed + counts.crossed
        outcome.doubted += doubts > 0
        outcome.unseen += bool(damaged.unseen)
        feed = self._feed()  # the connection is made again
        for item in self._items:
            self._give(feed, item)
        outcome.not_recovered += _all(feed) != self._last

    # ------------------------------------------------ damage

    def _damage(self, draw: random.Random) -> Damaged:
        items = list(self._items)
        unseen: dict[int, set[str]] = {}
        for _ in range(draw.randint(1, 3)):
            if self._first + 1 >= len(items):
                break  # nothing left to damage
            place = draw.randrange(self._first + 1, len(items))
            fault = draw.choice(FAULTS)
            item = items[place]
            if fault == "drop":
                del items[place]
                self._blind(unseen, item)
            elif fault == "repeat":
                to = min(len(items), place + draw.choice((1, 1, 2, 6)))
                items.insert(to, item)
                if to > place + 1:
                    self._blind(unseen, item)
            elif fault == "reorder":
                del items[place]
                to = min(len(items), place + draw.randint(1, 3))
                items.insert(to, item)
                self._blind(unseen, item)
            elif fault == "cut":
                items[place] = item._replace(frame=item.frame[: draw.randrange(len(item.frame))])
            elif item.frame:
                data = bytearray(item.frame)
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                items[place] = item._replace(frame=bytes(data))
                self._blind_flip(unseen, item, items[place])
        return Damaged(items, unseen)

    def _blind(self, unseen: dict[int, set[str]], item: Item) -> None:
        """A frame lost, moved or repeated late, where nothing chains updates."""
        if self._exchange.unchained and self._about(item):
            unseen.setdefault(item.number, set()).update(self._about(item))

    def _blind_flip(self, unseen: dict[int, set[str]], item: Item, flipped: Item) -> None:
        """A flipped bit that leaves a frame which says something else, and nothing in it could tell."""
        try:
            before, after = self._events(item), self._parsed(flipped)
        except MALFORMED:
            return
        if self._exchange.unchained:
            if before != after:
                about = {e.symbol for e in (*before, *after) if isinstance(e, Snapshot | Delta)}
                unseen.setdefault(item.number, set()).update(about)
            return
        for old, new in zip(before, after, strict=False):
            if isinstance(old, Snapshot | Delta) and type(old) is type(new):
                assert isinstance(new, Snapshot | Delta)
                levels = (old.bids, old.asks) != (new.bids, new.asks)
                start = isinstance(old, Snapshot) and old.last_id != new.last_id
                if (levels or start) and new.checksum is None:
                    unseen.setdefault(item.number, set()).add(old.symbol)

    # ------------------------------------------------ feeds

    def _feed(self) -> Feed:
        feed = Feed(self._exchange, None, None, COMPARED, Timing(), 0)
        feed.on_connected(0)
        return feed

    def _give(self, feed: Feed, item: Item) -> bool:
        """As live: a frame that cannot be read costs the connection, and with it every book; False then."""
        try:
            if item.native is not None:
                feed.on_rest(item.native, item.frame, 0)
            else:
                feed.on_frame(item.frame, 0)
        except (FeedError, UsageError) as error:
            feed.on_lost(0, str(error))
            feed.on_connected(0)
            return False
        return True

    def _parsed(self, item: Item) -> list[Event]:
        exchange = self._exchange
        if item.native is not None:
            assert exchange.parse_snapshot is not None
            return [exchange.parse_snapshot(item.native, item.frame)]
        return exchange.parse(item.frame)

    def _said(self, item: Item) -> list[Event]:
        """What the frame says as it was delivered; nothing if it cannot be read."""
        if item.frame is self._items[item.number].frame:
            return self._events(item)
        try:
            return self._parsed(item)
        except MALFORMED:
            return []

    def _events(self, item: Item) -> list[Event]:
        """Of the undamaged frame of that number; parsed once."""
        found = self._known.get(item.number)
        if found is None:
            found = self._known[item.number] = self._parsed(self._items[item.number])
        return found

    def _about(self, item: Item) -> set[str]:
        return {event.symbol for event in self._events(item) if isinstance(event, Snapshot | Delta)}


def _tops(book: Book) -> Tops:
    return book.bids.top(COMPARED), book.asks.top(COMPARED)


def _all(feed: Feed) -> dict[str, tuple[str, Tops]]:
    return {symbol: (state, _tops(book)) for symbol, state, book in feed.books()}
