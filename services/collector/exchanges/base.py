"""What an exchange is to the collector: data and pure functions. One file per exchange fills it in.

Native names (`BTCUSDT`, `BTC/USD`) live in here and in the adapters only; all else speaks canonical symbols. How to
add one: docs/adding-an-exchange.md.
"""

import datetime
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar

import msgspec

from services.collector.book import Book, Level
from shared import symbols
from shared.errors import BadFrame

# ---------------------------------------------------------------- what a frame can say
#
# Structs of msgspec: one or more are made for every frame, in a quarter of the time that a NamedTuple takes.


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """A whole book.

    `last_id` is where updates go on from. `order` places it among the faster tops (`Top`), where there are any.
    `checksum` None: the exchange sends none. Tokens are the levels as the exchange's checksum wants them.
    """

    symbol: str
    bids: list[Level]
    asks: list[Level]
    exchange_ns: int | None
    last_id: int = 0
    checksum: int | None = None
    bid_tokens: list[bytes] | None = None
    ask_tokens: list[bytes] | None = None
    order: int = 0


class Delta(msgspec.Struct, frozen=True, gc=False):
    """Changes of a book, sizes absolute, 0 removes. `first_id` links it to the one before (`Exchange.follows`)."""

    symbol: str
    bids: list[Level]
    asks: list[Level]
    exchange_ns: int | None
    first_id: int = 0
    last_id: int = 0
    checksum: int | None = None
    bid_tokens: list[bytes] | None = None
    ask_tokens: list[bytes] | None = None
    order: int = 0


class Top(msgspec.Struct, frozen=True, gc=False):
    """Best bid and ask from a faster channel, `order` comparable with that of the book's own updates."""

    symbol: str
    bid: Level
    ask: Level
    order: int
    exchange_ns: int | None


class TradeSeen(msgspec.Struct, frozen=True, gc=False):
    """A trade; `replayed` ones are older than the subscription and are not published.

    `number` is its place in a gapless count of the symbol's trades, None where the exchange has no such count;
    an aggregated trade covers the `fills` numbers up to it.
    """

    symbol: str
    trade_id: str
    price: float
    size: float
    taker_side: str | None
    exchange_ns: int | None
    replayed: bool = False
    number: int | None = None
    fills: int = 1


class LastTrade(msgspec.Struct, frozen=True, gc=False):
    """The number of the newest trade, from a heartbeat."""

    symbol: str
    number: int


class Counter(msgspec.Struct, frozen=True, gc=False):
    """A connection-wide frame number: comes first in the list of its frame."""

    number: int


class Acknowledged(msgspec.Struct, frozen=True, gc=False):
    """A subscription was accepted; `depth` where the exchange repeats it."""

    symbol: str
    depth: int | None


class Unsubscribed(msgspec.Struct, frozen=True, gc=False):
    """The exchange stops sending a symbol's book."""

    symbol: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A subscription was refused, in the exchange's words; `symbol` None where it does not say."""

    symbol: str | None
    words: str


class Limited(msgspec.Struct, frozen=True, gc=False):
    """We said too much: the exchange asks us to wait."""

    words: str
    wait_s: float


class Status(msgspec.Struct, frozen=True, gc=False):
    """Whether the exchange trades at all."""

    online: bool
    words: str


class Closing(msgspec.Struct, frozen=True, gc=False):
    """The exchange announces that it will close the connection."""

    words: str


Event = (
    Snapshot
    | Delta
    | Top
    | TradeSeen
    | LastTrade
    | Counter
    | Acknowledged
    | Unsubscribed
    | Refused
    | Limited
    | Status
    | Closing
)


# ---------------------------------------------------------------- what an exchange lists


@dataclass(frozen=True, slots=True)
class Instrument:
    """One pair as the exchange's metadata call describes it.

    Attributes:
        native: The exchange's own name, as its streams want it.
        symbol: Canonical name, from the base and quote that the exchange names separately.
        trading: Whether it can be traded by takers now; `status` is the exchange's own word.
        tick_size: Step of prices (quote per base); lot_step: of sizes (base).
        min_size: Least order in base; min_notional: in quote. None where the exchange states none.
        alias_of: Canonical name of the pair whose book this one shows.
    """

    native: str
    symbol: str
    trading: bool
    status: str
    tick_size: Decimal | None
    lot_step: Decimal | None
    min_size: Decimal | None
    min_notional: Decimal | None
    alias_of: str | None = None


def canonical(base: str, quote: str) -> str | None:
    """`BASE-QUOTE`; None where a name cannot be a symbol of ours (`币安人生`, `AAPLx`): such pairs are left out.

    Names are not put into upper case: that would make one of two.
    """
    symbol = f"{base}-{quote}"
    return symbol if symbols.is_canonical(symbol) else None


def number(value: Any) -> Decimal | None:
    """A positive decimal of a metadata answer; None where it is missing, empty or zero.

    Raises:
        ValueError: there is something, and it is no number.
    """
    if value is None or value == "":
        return None
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"not a number: {value!r}") from None
    if not found.is_finite():
        raise ValueError(f"not a number: {value!r}")
    return found if found > 0 else None


# ---------------------------------------------------------------- how it is to be treated


class Step(Enum):
    """What an update is to the book it is for."""

    APPLY = auto()
    IGNORE = auto()  # already known: superseded, repeated, or a keepalive
    GAP = auto()


class Rule(NamedTuple):
    """At most `most` within any `seconds`."""

    most: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The exchange's own limits; every rule of a list holds at once.

    Attributes:
        connects: Connection attempts of one address.
        messages: Frames (other than pings) that one connection may send.
        messages_of_address: Those are the limit of one address, all connections together.
        requests: REST weight of one address.
        forbidden_wait_s: How long to stay away after HTTP 403.
        books: Most books that one connection carries.
        age_s: How long a connection may live; None: as long as it likes.
    """

    connects: tuple[Rule, ...]
    messages: tuple[Rule, ...]
    requests: tuple[Rule, ...]
    forbidden_wait_s: float = 60.0
    books: int = 100
    age_s: float | None = None
    messages_of_address: bool = False


@dataclass(frozen=True, slots=True)
class Proof:
    """How a link is made to prove itself where data does not: asked when nothing has come for `idle_s`.

    `frame` is the exchange's own ping; None: a ping of the WebSocket protocol. `always_s`: sent so often whatever
    comes, where the exchange demands it.
    """

    idle_s: float
    frame: str | None = None
    always_s: float | None = None


def always(last_id: int, delta: Delta) -> Step:
    """For exchanges whose updates carry nothing to check."""
    return Step.APPLY


def no_limit(status: int, body: bytes) -> float | None:
    """For exchanges that say "too many requests" by the HTTP status alone."""
    return None


_T = TypeVar("_T")

MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    ArithmeticError,
    msgspec.MsgspecError,
)
"""What a parser trips over when a frame is not what it should be."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange's protocol.

    Attributes:
        url: Address to connect to, from the configured base and the native symbols.
        subscribe: Frames to send once connected, from native symbols, book depth and whether faster tops are wanted.
        resubscribe: Frames that bring a new snapshot (or, with REST snapshots, the stream) of these books only.
        unsubscribe: Frames that end everything about these symbols.
        parse: Events in one frame, in order; empty for what does not concern us. May raise any of MALFORMED on a
            malformed frame: `parse_frame` turns them into BadFrame.
        follows: What an update is to a book that stands at `last_id`.
        native: The exchange's own name of a canonical symbol, where its metadata does not say.
        canonical: The canonical name of a native one where the exchange separates base and quote itself; the native
            name where only its metadata could tell.
        depths: Book depths that can be subscribed; empty: any.
        instruments_url, parse_instruments: The metadata call; instruments_cost: its weight.
        time_url, parse_time: The clock: its time in ns and how coarse that is, in ns.
        limits: See `Limits`.
        proof: See `Proof`; None: its heartbeats come within two seconds.
        truncates: Whether levels beyond the subscribed depth must be dropped by us.
        checksum: What the exchange's checksum must be for a book, where it sends one.
        by_time: Updates of a book have no numbers: a time that goes back puts the book in doubt.
        unchained: Updates carry nothing at all to check: a missing trade puts the book in doubt.
        snapshot_url: Where a snapshot is fetched by REST; None where the socket sends it.
        snapshot_cost: Weight of that request, from the depth.
        snapshot_symbol: Native symbol of a REST address, None if it is not a snapshot's.
        parse_snapshot: Snapshot in a REST answer's body.
        refusal: Words of a REST answer that says the symbol does not exist, None for all others.
        limited: Seconds to wait that a REST answer's body asks for, None for all others.
    """

    name: str
    url: Callable[[str, Sequence[str]], str]
    subscribe: Callable[[Sequence[str], int, bool], list[str]]
    resubscribe: Callable[[Sequence[str], int], list[str]]
    unsubscribe: Callable[[Sequence[str], int], list[str]]
    parse: Callable[[bytes | str], list[Event]]
    native: Callable[[str], str]
    canonical: Callable[[str], str]
    instruments_url: Callable[[str], str]
    parse_instruments: Callable[[bytes | str], list[Instrument]]
    time_url: Callable[[str], str]
    parse_time: Callable[[bytes | str], tuple[int, int]]
    limits: Limits
    instruments_cost: int = 1
    follows: Callable[[int, Delta], Step] = always
    depths: tuple[int, ...] = ()
    proof: Proof | None = None
    truncates: bool = False
    checksum: Callable[[Book], int] | None = None
    by_time: bool = False
    unchained: bool = False
    snapshot_url: Callable[[str, str, int], str] | None = None
    snapshot_cost: Callable[[int], int] | None = None
    snapshot_symbol: Callable[[str], str | None] | None = None
    parse_snapshot: Callable[[str, bytes | str], Snapshot] | None = None
    refusal: Callable[[int, bytes], str | None] | None = None
    limited: Callable[[int, bytes], float | None] = no_limit


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


def parse_answer(exchange: Exchange, parse: Callable[[bytes | str], _T], body: bytes | str) -> _T:
    """What `parse` reads in the body of a metadata or time answer.

    Raises:
        BadFrame: it cannot be read.
    """
    try:
        return parse(body)
    except MALFORMED as error:
        raise BadFrame(exchange.name, body, error) from None


def parse_listing(exchange: Exchange, body: bytes | str) -> list[Instrument]:
    """What an exchange lists, from the body of its metadata answer.

    Raises:
        BadFrame: it cannot be read, or lists nothing: no exchange does that, and to believe it would end every book.
    """
    found = parse_answer(exchange, exchange.parse_instruments, body)
    if not found:
        raise BadFrame(exchange.name, body, "an empty listing")
    return found


def levels(rows: Sequence[Sequence[str]]) -> list[Level]:
    """`[["0.35130000", "6195.00000000", ...], ...]` as floats, whose shortest repr keeps the digits."""
    return [(float(row[0]), float(row[1])) for row in rows]


def integer(value: Any) -> int:
    """An integer of the wire, as it stands.

    Raises:
        ValueError: it is none (a float, a text, a boolean).
    """
    if type(value) is not int:
        raise ValueError(f"not an integer: {value!r}")
    return int(value)


MOST_SECONDS = (1 << 63) // 1_000_000_000
"""Times beyond do not fit into 64 bits of nanoseconds: the year 2262."""


def positive(value: Any) -> float:
    """A price or size of a trade.

    Raises:
        ValueError: it is not positive and finite.
    """
    found = float(value)
    if not 0 < found < math.inf:
        raise ValueError(f"not a positive number: {value!r}")
    return found


def ms_ns(value: int) -> int:
    """Milliseconds of the wire as nanoseconds since the epoch.

    Raises:
        ValueError: no integer, before 1970 or after 2262.
    """
    if type(value) is not int or not 0 <= value < MOST_SECONDS * 1000:
        raise ValueError(f"not a time in ms: {str(value)[:40]}")
    return value * 1_000_000


@functools.lru_cache(maxsize=256)
def _seconds(text: str) -> int:
    seconds = int(datetime.datetime.fromisoformat(text + "+00:00").timestamp())
    if not 0 <= seconds < MOST_SECONDS:
        raise ValueError(f"not a time that we could use: {text}")
    return seconds * 1_000_000_000


def iso_ns(text: str) -> int:
    """`2026-08-12T19:27:48.098821666Z` (any number of digits) as nanoseconds since the epoch.

    Raises:
        ValueError: not such a time, before 1970 or after 2262.
    """
    if len(text) == 27 and text[26] == "Z":  # microseconds: what most exchanges send
        return _seconds(text[:19]) + int(text[20:26]) * 1000
    if text[-1:] != "Z":
        raise ValueError(f"not a UTC time: {text[:40]!r}")
    digits = text[20:29].rstrip("Z")
    if digits:
        return _seconds(text[:19]) + int(digits) * _TENS[9 - len(digits)]
    return _seconds(text[:19])


_TENS: tuple[int, ...] = tuple(int(10**power) for power in range(10))
