"""One simulated exchange with one client, for tests that speak a protocol to it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.simulator.exchanges import SERVERS
from services.simulator.market import BookEvent, Market
from shared import settings

CONFIGURED = settings.load()
SECOND = 1_000_000_000
BOOKS_OF = {"coinbase-exchange": "coinbase"}
"""Servers that stand for another exchange's second protocol."""


class World:
    """One simulated exchange with one client."""

    def __init__(self, name: str, path: str = "", seed: int = 5) -> None:
        self.market = Market(CONFIGURED, tuple(SERVERS), seed, 5.0)
        self.exchange = BOOKS_OF.get(name, name)
        self.books = {symbol: book for (ex, symbol), book in self.market.books.items() if ex == self.exchange}
        self.server: Any = SERVERS[name](self.books)
        self.session: Any = self.server.session(path, 0)
        self.frames: list[str] = list(self.session.on_open(0))

    def say(self, message: object, now_ns: int = 0) -> list[str]:
        answer: list[str] = self.session.on_client(json.dumps(message), now_ns)
        self.frames += answer
        return answer

    def run(self, seconds: float) -> list[str]:
        """Everything up to so many seconds since the start; the new frames."""
        before = len(self.frames)
        for at, event in self.market.step(int(seconds * SECOND)):
            if event.exchange != self.exchange:
                continue
            if isinstance(event, BookEvent):
                self.server.before_book(event)
                self.frames += self.session.on_book(event, at)
            else:
                self.frames += self.session.on_trade(event, at)
        return self.frames[before:]

    def get(self, path: str, now_ns: int = 0, status: int = 200) -> Any:
        """The decoded answer to a GET, which must have this status."""
        answer = self.server.rest(path, now_ns)
        assert answer is not None
        assert answer.status == status
        return json.loads(answer.body)

    def book(self, symbol: str, levels: int = 10**6) -> dict[str, dict[float, float]]:
        """The true book, to so many levels."""
        book = self.books[symbol]
        return {side: {book.price(p): book.size(s) for p, s in book.top(side, levels)} for side in ("bids", "asks")}


@pytest.fixture
def make_world() -> Callable[..., World]:
    """`make_world("kraken")`: an exchange by its server's name, with a client just connected."""
    return World
