"""What an exchange is to the collector: data and pure functions. One file per exchange fills it in.

Native names (`BTCUSDT`, `BTC/USD`) live in here and in the adapters only; all else speaks canonical symbols.
"""

import datetime
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from services.collector.book import Book, Level
from shared.errors import BadFrame


class Chain(Enum):
    """How an exchange lets us see that an update of a book is missing."""

    UPDATE_IDS = auto()  # first and last id of each update: Binance
    CHECKSUM = auto()  # over the top of the book: Kraken
    CONNECTION = auto()  # one counter over all frames of the connection: Coinbase Advanced Trade
    NONE = auto()  # not at all: Coinbase Exchange


class Snapshot(NamedTuple):
    """A whole book. `last_id` for UPDATE_IDS; tokens and checksum for CHECKSUM."""

    symbol: str
    bids: list[Level]
    asks: list[Level]
    exchange_ns: int | None
    last_id: int = 0
    checksum: int | None = None
    bid_tokens: list[str] | None = None
    ask_tokens: list[str] | None = None


class Delta(NamedTuple):
    """Changes of a book, sizes absolute, 0 removes."""

    symbol: str
    bids: list[Level]
    asks: list[Level]
    exchange_ns: int | None
    first_id: int = 0
    last_id: int = 0
    checksum: int | None = None
    bid_tokens: list[str] | None = None
    ask_tokens: list[str] | None = None


class TradeSeen(NamedTuple):
    """A trade; `replayed` ones are older than the subscription and are not published."""

    symbol: str
    trade_id: str
    price: float
    size: float
    taker_side: str | None
    exchange_ns: int | None
    replayed: bool = False


class Counter(NamedTuple):
    """The connection-wide frame number, for CONNECTION chains: comes first in the list of its frame."""

    number: int


class Acknowledged(NamedTuple):
    """A subscription was accepted; `depth` where the exchange repeats it."""

    symbol: str
    depth: int | None


class Unsubscribed(NamedTuple):
    """The exchange stops sending a symbol's book."""

    symbol: str


class Refused(NamedTuple):
    """A subscription was refused, in the exchange's words; `symbol` None where it does not say."""

    symbol: str | None
    words: str


class Status(NamedTuple):
    """Whether the exchange trades at all."""

    online: bool
    words: str


class Closing(NamedTuple):
    """The exchange announces that it will close the connection."""

    words: str


Event = Snapshot | Delta | TradeSeen | Counter | Acknowledged | Unsubscribed | Refused | Status | Closing


MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What a parser trips over when a frame is not what it should be."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange's protocol.

    Attributes:
        url: Address to connect to, from the configured base and the native symbols.
        subscribe: Frames to send once connected, from native symbols and book depth.
        resubscribe: Frames that bring a new snapshot of one book; None where that takes a new connection.
        parse: Events in one frame, in order; empty for what does not concern us. May raise any of ValueError,
            TypeError, KeyError and LookupError on a malformed frame: `parse_frame` turns them into BadFrame.
        native: The exchange's own name of a canonical symbol.
        canonical: The canonical name of a native one where the exchange separates base and quote itself;
            the native name where only a table could tell.
        checksum: What the exchange's checksum must be for a book, where it sends one.
        truncates: Whether levels beyond the subscribed depth must be dropped by us.
        snapshot_url: Where a snapshot is fetched by REST; None where the socket sends it.
        snapshot_symbol: Native symbol of a REST address, None if it is not a snapshot's.
        parse_snapshot: Snapshot in a REST answer's body.
        refusal: Words of a REST answer that says the symbol does not exist, None for all others.
        ping_s: Interval of our own WebSocket pings where nothing else proves life; None where heartbeats do.
        books_per_connection: Most books that one connection carries.
    """

    name: str
    chain: Chain
    url: Callable[[str, Sequence[str]], str]
    subscribe: Callable[[Sequence[str], int], list[str]]
    parse: Callable[[bytes | str], list[Event]]
    native: Callable[[str], str]
    canonical: Callable[[str], str]
    resubscribe: Callable[[str, int], list[str]] | None = None
    truncates: bool = False
    checksum: Callable[[Book], int] | None = None
    snapshot_url: Callable[[str, str, int], str] | None = None
    snapshot_symbol: Callable[[str], str | None] | None = None
    parse_snapshot: Callable[[str, bytes | str], Snapshot] | None = None
    refusal: Callable[[int, bytes], str | None] | None = None
    ping_s: float | None = None
    books_per_connection: int = 100


def parse_frame(exchange: Exchange, frame: bytes | str) -> list[Event]:
    """Events in one frame.

    Raises:
        BadFrame: the frame is not what the protocol allows; carries its beginning.
    """
    try:
        return exchange.parse(frame)
    except MALFORMED as error:
        raise BadFrame(exchange.name, frame, error) from None


def parse_rest(exchange: Exchange, symbol: str, body: bytes | str) -> Snapshot:
    """Snapshot in a REST answer.

    Raises:
        BadFrame: the body is none.
    """
    if exchange.parse_snapshot is None:
        raise BadFrame(exchange.name, body, "this exchange has no REST snapshot")
    try:
        return exchange.parse_snapshot(symbol, body)
    except MALFORMED as error:
        raise BadFrame(exchange.name, body, error) from None


def levels(rows: Sequence[Sequence[str]]) -> list[Level]:
    """`[["0.35130000", "6195.00000000"], ...]` as floats, whose shortest repr keeps the digits."""
    return [(float(row[0]), float(row[1])) for row in rows]


@functools.lru_cache(maxsize=4096)
def _seconds(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text + "+00:00").timestamp())


def iso_ns(text: str) -> int:
    """`2026-08-12T19:27:48.098821666Z` (any number of digits) as nanoseconds since the epoch.

    Raises:
        ValueError: not such a time.
    """
    if not text.endswith("Z"):
        raise ValueError(f"not a UTC time: {text!r}")
    fraction = text[20:-1]
    return _seconds(text[:19]) * 1_000_000_000 + (int(fraction[:9].ljust(9, "0")) if fraction else 0)
