"""What every simulated exchange is: a server with its books, and a session per connection. No sockets here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

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


class Server(ABC):
    """One exchange.

    Args:
        books: Its books by canonical symbol.
        native: The exchange's name of a canonical symbol.
    """

    path = ""

    def __init__(self, books: Mapping[str, SimBook]) -> None:
        self.books = dict(books)

    @abstractmethod
    def session(self, path: str, now_ns: int) -> Session:
        """A new connection to `path` (with its query)."""

    def before_book(self, event: BookEvent) -> None:  # noqa: B027  # only exchanges that number updates need it
        """The book has changed: number the update, once for all clients."""

    def rest(self, path: str, now_ns: int) -> Answer | None:
        """Answer a GET; None for an unknown path."""
        return None


def native_names(books: Mapping[str, SimBook], name: Callable[[str], str]) -> dict[str, str]:
    """Native to canonical names."""
    return {name(symbol): symbol for symbol in books}
