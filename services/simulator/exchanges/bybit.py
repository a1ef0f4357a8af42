"""Bybit v5 spot as the client sees it: https://github.com/bybit-exchange/docs (v5/websocket/public, v5/market, read
2026-07-24); what those do not say is as probed on the live server family in September 2026.

Every depth is a stream of its own with its own update numbers; `seq` is one clock for all topics of a symbol.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import orjson

from services.simulator.exchanges.base import (
    Answer,
    Server,
    Session,
    Window,
    least_size,
    native_names,
    requested,
    trimmed,
)
from services.simulator.market import BookEvent, SimBook, TradeEvent
from shared import symbols

FIRST_UPDATE = {1: 72_212_457, 50: 2_876_700, 200: 9_131_024, 1000: 5_277_055}
"""Depths that there are, and where their counters stand when we begin."""

FIRST_SEQUENCE = 112_603_120_278
MOST_ARGS = 10
REPEAT_NS = 3_000_000_000
UNSUBSCRIBED_NS = 60_000_000_000
SILENT_NS = 600_000_000_000


class _Window(Window):
    """The best levels of one book, as all who subscribe this depth hold them."""

    def __init__(self, book: SimBook, depth: int) -> None:
        super().__init__(book, depth)
        self.update = FIRST_UPDATE[depth]
        self.sequence = FIRST_SEQUENCE

    def move(self, sequence: int) -> None:
        """Follow the book: what left is removed, what came in is sent, in the order of the book."""
        self.follow()
        if self.changed:
            self.update += 1
            self.sequence = sequence


class BybitServer(Server):
    """Symbols are `BTCUSDT` here, upper case only."""

    def __init__(self, books: Mapping[str, SimBook]) -> None:
        super().__init__(books)
        self.names = native_names(books, lambda symbol: symbol.replace("-", ""))
        self.windows = {
            (symbol, depth): _Window(book, depth) for symbol, book in books.items() for depth in FIRST_UPDATE
        }
        self.sequence = dict.fromkeys(books, FIRST_SEQUENCE)
        self._traded = dict.fromkeys(books, 0)
        self.connections = 0

    def before_book(self, event: BookEvent) -> None:
        self.sequence[event.symbol] += len(event.bids) + len(event.asks)
        for depth in FIRST_UPDATE:
            self.windows[event.symbol, depth].move(self.sequence[event.symbol])

    def trade_sequence(self, event: TradeEvent) -> int:
        """Number the trade, the first time that a client is told of it."""
        if self._traded[event.symbol] != event.trade_id:
            self._traded[event.symbol] = event.trade_id
            self.sequence[event.symbol] += 1
        return self.sequence[event.symbol]

    def session(self, path: str, now_ns: int) -> Session:
        self.connections += 1
        return BybitSession(self, now_ns, self.connections)

    def rest(self, path: str, now_ns: int) -> Answer | None:
        place, query = requested(path)
        if place == "/v5/market/time":
            return _answer({"timeSecond": str(now_ns // 1_000_000_000), "timeNano": str(now_ns)}, now_ns)
        if place not in ("/v5/market/instruments-info", "/v5/market/orderbook"):
            return None
        if query.get("category") != "spot":
            return _refusal("params error: Category is invalid", now_ns)
        symbol = self.names.get(query.get("symbol", ""))
        if symbol is None and ("symbol" in query or place == "/v5/market/orderbook"):
            return _refusal("Not supported symbols", now_ns)
        if place == "/v5/market/instruments-info":
            listed = [symbol] if symbol is not None else self.books
            return _answer({"category": "spot", "list": [self._instrument(one) for one in listed]}, now_ns)
        assert symbol is not None
        limit = query.get("limit", "1")
        if not limit.isdigit() or not 1 <= int(limit) <= 1000:
            return _refusal("params error: Limit is invalid", now_ns)
        millis = now_ns // 1_000_000
        book = self.books[symbol]
        sides = {name: rows(book, book.top(side, int(limit))) for name, side in (("a", "asks"), ("b", "bids"))}
        numbers = {"u": self.windows[symbol, 1000].update, "seq": self.windows[symbol, 1000].sequence}
        return _answer({"s": query["symbol"], **sides, "ts": millis, **numbers, "cts": millis}, now_ns)

    def _instrument(self, symbol: str) -> dict[str, Any]:
        book = self.books[symbol]
        base, quote = symbols.split(symbol)
        return {
            "symbol": symbol.replace("-", ""),
            "baseCoin": base,
            "quoteCoin": quote,
            "innovation": "0",
            "status": "Closed" if symbol in self.halted else "Trading",
            "marginTrading": "utaOnly",
            "stTag": "0",
            "lotSizeFilter": {
                "basePrecision": "0.000001",
                "quotePrecision": "0.0000001",
                "minOrderQty": least_size(book),
                "maxOrderQty": "230",
                "minOrderAmt": "5",
                "maxOrderAmt": "8000000",
                "maxLimitOrderQty": "230",
                "maxMarketOrderQty": "120",
                "postOnlyMaxLimitOrderSize": "1150",
            },
            "priceFilter": {"tickSize": book.price_text(1)},
            "riskParameters": {"priceLimitRatioX": "0.005", "priceLimitRatioY": "0.01"},
        }


class BybitSession(Session):
    """One connection. A frame is subscribed as a whole or not at all; who races whom, snapshot or acknowledgement,
    differs from one connection to the next."""

    def __init__(self, server: BybitServer, now_ns: int, number: int) -> None:
        self._server = server
        self._snapshot_first = number % 2 == 1
        self._connection = f"d9avsh3fo0jvsls9d82g-{number:05x}"
        self._heard_ns = now_ns
        self._changed_ns = dict.fromkeys(server.books, now_ns)
        self._books: dict[tuple[str, int], int] = {}  # when each was last sent
        self._trades: set[str] = set()

    def on_open(self, now_ns: int) -> list[str]:
        return []

    def overdue(self, now_ns: int) -> bool:
        subscribed = self._books or self._trades
        return now_ns - self._heard_ns > (SILENT_NS if subscribed else UNSUBSCRIBED_NS)

    def on_client(self, text: str, now_ns: int) -> list[str]:
        self._heard_ns = now_ns
        try:
            request = orjson.loads(text)
            op, args = request["op"], [str(topic) for topic in request.get("args") or []]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return [self._answer({}, "", "Failed to decode incoming data", success=False)]
        if op == "ping":
            return [self._answer(request, op, "pong")]
        if op == "unsubscribe":
            for topic in args:
                self._remove(topic)
            return [self._answer(request, op, "unsubscribe")]
        if op != "subscribe":
            return [self._answer(request, op, "error:invalid op", success=False)]
        if len(args) > MOST_ARGS:
            return [self._answer(request, op, f"args size >{MOST_ARGS}", success=False)]
        for topic in args:
            channel, symbol, depth = self._parse(topic)
            if symbol is None:
                return [self._answer(request, op, f"error:handler not found,topic:{topic}", success=False)]
            if (symbol, depth) in self._books or (channel == "publicTrade" and symbol in self._trades):
                return [self._answer(request, op, f"error:already subscribed,topic:{topic}", success=False)]
        frames = [frame for topic in args for frame in self._add(topic, now_ns)]
        acknowledgement = self._answer(request, op, "subscribe")
        return [*frames, acknowledgement] if self._snapshot_first else [acknowledgement, *frames]

    def on_book(self, event: BookEvent, now_ns: int) -> list[str]:
        self._changed_ns[event.symbol] = now_ns
        frames = []
        for depth in FIRST_UPDATE:
            if (event.symbol, depth) in self._books and self._server.windows[event.symbol, depth].changed:
                kind = "snapshot" if depth == 1 else "delta"
                frames.append(self._book(kind, event.symbol, depth, now_ns))
        return frames

    def on_timer(self, now_ns: int) -> list[str]:
        """The best bid and ask again where they have not changed, with the same number."""
        late = [key for key, sent_ns in self._books.items() if key[1] == 1 and now_ns - sent_ns >= REPEAT_NS]
        return [self._book("snapshot", symbol, depth, now_ns) for symbol, depth in late]

    def on_trade(self, event: TradeEvent, now_ns: int) -> list[str]:
        sequence = self._server.trade_sequence(event)
        if event.symbol not in self._trades:
            return []
        book = self._server.books[event.symbol]
        name = event.symbol.replace("-", "")
        mixed = zlib.crc32(f"{name}{event.trade_id}".encode())  # ids are text without an order
        trade = {
            "i": f"2290{mixed:010d}{event.trade_id % 1_000_000:06d}",
            "T": now_ns // 1_000_000,
            "p": trimmed(book.price_text(event.price)),
            "v": trimmed(book.size_text(event.size)),
            "S": "Buy" if event.taker_side == "buy" else "Sell",
            "s": name,
            "BT": False,
            "seq": sequence,
        }
        frame = {"topic": f"publicTrade.{name}", "ts": now_ns // 1_000_000, "type": "snapshot", "data": [trade]}
        return [orjson.dumps(frame).decode()]

    def _parse(self, topic: str) -> tuple[str, str | None, int]:
        """Channel, canonical symbol and depth (0 for trades); no symbol where there is no such topic."""
        match topic.split("."):
            case ["orderbook", depth, name] if depth in map(str, FIRST_UPDATE):
                return "orderbook", self._server.names.get(name), int(depth)
            case ["publicTrade", name]:
                return "publicTrade", self._server.names.get(name), 0
            case _:
                return "", None, 0

    def _add(self, topic: str, now_ns: int) -> list[str]:
        channel, symbol, depth = self._parse(topic)
        assert symbol is not None
        if channel == "publicTrade":
            self._trades.add(symbol)
            return []
        return [self._book("snapshot", symbol, depth, now_ns)]

    def _remove(self, topic: str) -> None:
        channel, symbol, depth = self._parse(topic)
        if symbol is not None and channel == "publicTrade":
            self._trades.discard(symbol)
        elif symbol is not None:
            self._books.pop((symbol, depth), None)

    def _book(self, kind: str, symbol: str, depth: int, now_ns: int) -> str:
        self._books[symbol, depth] = now_ns
        book, window = self._server.books[symbol], self._server.windows[symbol, depth]
        levels = (
            window.changes if kind == "delta" else {side: list(held.items()) for side, held in window.levels.items()}
        )
        name = symbol.replace("-", "")
        data = {
            "s": name,
            "b": rows(book, levels["bids"]),
            "a": rows(book, levels["asks"]),
            "u": window.update,
            "seq": window.sequence,
        }
        frame = {
            "topic": f"orderbook.{depth}.{name}",
            "ts": now_ns // 1_000_000,
            "type": kind,
            "data": data,
            "cts": self._changed_ns[symbol] // 1_000_000,
        }
        return orjson.dumps(frame).decode()

    def _answer(self, request: dict[str, Any], op: str, words: str, *, success: bool = True) -> str:
        number = {"req_id": str(request["req_id"])} if "req_id" in request else {}
        frame = {"success": success, "ret_msg": words, "conn_id": self._connection, **number, "op": op}
        return orjson.dumps(frame).decode()


def rows(book: SimBook, levels: list[tuple[int, int]]) -> list[list[str]]:
    """Levels as this exchange writes them: no zeros at the end, "0" removes."""
    return [[trimmed(book.price_text(price)), trimmed(book.size_text(size))] for price, size in levels]


def _answer(result: dict[str, Any], now_ns: int, code: int = 0, words: str = "OK") -> Answer:
    body = {"retCode": code, "retMsg": words, "result": result, "retExtInfo": {}, "time": now_ns // 1_000_000}
    return Answer(200, orjson.dumps(body))


def _refusal(words: str, now_ns: int) -> Answer:
    """HTTP says 200 here too."""
    return _answer({}, now_ns, 10001, words)
