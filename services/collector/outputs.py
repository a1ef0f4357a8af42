"""What a feed wants done, as values: to publish, to send, to fetch, to give up."""

import msgspec

from services.collector.book import Level
from services.collector.exchanges.base import TradeSeen
from shared.messages import BookState


class BookChanged(msgspec.Struct, frozen=True, gc=False):
    """The published levels of a live book may have changed; best first."""

    symbol: str
    bids: list[Level]
    asks: list[Level]
    received_ns: int
    exchange_ns: int | None


class Traded(msgspec.Struct, frozen=True, gc=False):
    """A new trade."""

    trade: TradeSeen
    symbol: str
    received_ns: int


class HealthChanged(msgspec.Struct, frozen=True, gc=False):
    """A book's state, on a change or as proof of life."""

    symbol: str
    state: BookState
    reason: str | None
    since_ns: int
    alive_ns: int
    received_ns: int


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send this frame to the exchange."""

    frame: str


class Fetch(msgspec.Struct, frozen=True, gc=False):
    """Fetch a snapshot by REST (native symbol) and bring it to `on_rest`."""

    native: str


class Resubscribe(msgspec.Struct, frozen=True, gc=False):
    """This book needs a new snapshot from the socket; the feed joins these into frames."""

    native: str


class Replace(msgspec.Struct, frozen=True, gc=False):
    """The exchange will end this connection: open another one first."""

    reason: str


class Reconnect(msgspec.Struct, frozen=True, gc=False):
    """This connection is of no more use."""

    reason: str


Output = BookChanged | Traded | HealthChanged | Send | Fetch | Resubscribe | Replace | Reconnect
