"""What every simulated exchange is: a server with its books, and a session per connection. No sockets here."""

import datetime
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from services.simulator.market import BookEvent, SimBook, TradeEvent


class Answer(NamedTuple):
    """A REST answer."""

    status: int
    body: bytes


class Session(ABC):
    """One client's connection: its frames in, our frames out."""

    @abstractmethod
    def on_open(self, now_ns: int) -> list[str]:
        """Frames to send at once."""

    @abstractmethod
    def on_client(self, text: str, now_ns: int) -> list[str]:
        """Answer one frame of the client."""

    @abstractmethod
    def on_book(self, event: BookEvent, now_ns: int) -> list[str]:
        """Frames for changes of a book that this client may have subscribed."""

    @abstractmethod
    def on_trade(self, event: TradeEvent, now_ns: int) -> list[str]:
        """Frames for a trade."""

    def on_timer(self, now_ns: int) -> list[str]:
        """Called about every 100 ms: heartbeats."""
        return []

    def overdue(self, now_ns: int) -> bool:
        """Whether the exchange would close this connection now."""
        return False

    def announce_end(self, now_ns: int) -> list[str]:
        """Frames by which the exchange says that it will soon close this connection; none where it never says so."""
        return []


class Server(ABC):
    """One exchange.

    Args:
        books: Its books by canonical symbol.
    """

    path = ""

    def __init__(self, books: Mapping[str, SimBook]) -> None:
        self.books = dict(books)
        self.halted: set[str] = set()
        """Canonical symbols that the metadata shows as not trading; their books go on."""

    @abstractmethod
    def session(self, path: str, now_ns: int) -> Session:
        """A new connection to `path` (with its query)."""

    def before_book(self, event: BookEvent) -> None:  # noqa: B027  # only exchanges that number updates need it
        """The book has changed: number the update, once for all clients."""

    def rest(self, path: str, now_ns: int) -> Answer | None:
        """Answer a GET; None for an unknown path."""
        return None


class Window:
    """The best levels of one book, as all who subscribe this depth hold them."""

    def __init__(self, book: SimBook, depth: int) -> None:
        self._book = book
        self._depth = depth
        self.levels = {side: dict(book.top(side, depth)) for side in ("bids", "asks")}
        self.changes: dict[str, list[tuple[int, int]]] = {"bids": [], "asks": []}

    @property
    def changed(self) -> bool:
        """Whether the book's last change was one within this depth."""
        return any(self.changes.values())

    def follow(self) -> None:
        """Follow the book: what left is removed, what came in is sent, in the order of the book."""
        for side in ("bids", "asks"):
            held, wanted = self.levels[side], dict(self._book.top(side, self._depth))
            changes = [(price, 0) for price in held if price not in wanted]
            changes += [(price, size) for price, size in wanted.items() if held.get(price) != size]
            self.changes[side] = sorted(changes, reverse=side == "bids")
            self.levels[side] = wanted


def native_names(books: Mapping[str, SimBook], name: Callable[[str], str]) -> dict[str, str]:
    """Native to canonical names."""
    return {name(symbol): symbol for symbol in books}


def requested(path: str) -> tuple[str, dict[str, str]]:
    """Path and query of a GET; of a repeated name the first value."""
    parts = urlsplit(path)
    return parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}


def iso(now_ns: int, digits: int) -> str:
    """`2026-08-01T02:53:53.184174Z`, with so many digits of the second."""
    seconds, rest = divmod(now_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{f'{rest:09d}'[:digits]}Z"


def trimmed(text: str) -> str:
    """Without the zeros at the end: `65000.10` is `65000.1`."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def least_size(book: SimBook, units: int = 1) -> str:
    """A least order as exchanges choose them: `units` times the power of ten below one unit of the quote currency."""
    price = int(book.price(min(book.asks)))
    return f"{Decimal(units).scaleb(-len(str(price))):f}"
