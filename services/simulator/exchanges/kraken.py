"""Kraken spot WebSocket v2 as the client sees it: https://docs.kraken.com/api/docs/websocket-v2/book (read
2026-02-26). Numbers are bare, with all their digits (`63000.0`, `0.00000000`): the checksum is made of those digits.

A level that falls out of the subscribed depth is not removed by a message: the client must truncate. One that comes
back into it is sent again.
"""

import datetime
import zlib
from typing import Any

import orjson

from services.simulator.exchanges.base import Answer, Server, Session, native_names
from services.simulator.market import BookEvent, SimBook, TradeEvent
from shared import symbols

DEPTHS = (10, 25, 100, 500, 1000)
HEARTBEAT_NS = 1_000_000_000


def iso(now_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(now_ns // 1_000_000_000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{now_ns % 1_000_000_000 // 1000:06d}Z"


def checksum(book: SimBook) -> int:
    """CRC32 over price and size digits of the ten best asks, then of the ten best bids."""
    digits = []
    for side in ("asks", "bids"):
        for price, size in book.top(side, 10):
            digits += [book.price_text(price), book.size_text(size)]
    return zlib.crc32("".join(text.replace(".", "").lstrip("0") for text in digits).encode())


class KrakenServer(Server):
    """Symbols are `BTC/USD` here."""

    def __init__(self, books: Any) -> None:
        super().__init__(books)
        self.names = native_names(books, lambda symbol: symbol.replace("-", "/"))
        self.connections = 0

    def session(self, path: str, now_ns: int) -> Session:
        self.connections += 1
        return KrakenSession(self, now_ns, 7_204_881_492_680_171_915 + self.connections)

    def rest(self, path: str, now_ns: int) -> Answer | None:
        if path == "/0/public/Time":
            result: dict[str, Any] = {"unixtime": now_ns // 1_000_000_000, "rfc1123": ""}
        elif path == "/0/public/AssetPairs":
            result = {name.replace("/", ""): self._pair(name, symbol) for name, symbol in self.names.items()}
        else:
            return None
        return Answer(200, orjson.dumps({"error": [], "result": result}))

    def _pair(self, name: str, symbol: str) -> dict[str, Any]:
        base, quote = symbols.split(symbol)
        digits = self.books[symbol].price_digits
        return {"altname": name.replace("/", ""), "wsname": name, "base": base, "quote": quote, "pair_decimals": digits}


class _Subscription:
    """A client's view of one book: exactly what it holds if it follows the rules."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.held: dict[str, dict[int, int]] = {"bids": {}, "asks": {}}

    def changes(self, book: SimBook) -> dict[str, list[tuple[int, int]]]:
        """What to send so that the client's truncated book is the true one."""
        found = {}
        for side in ("bids", "asks"):
            held, whole = self.held[side], book.bids if side == "bids" else book.asks
            wanted = dict(book.top(side, self.depth))
            gone = [(price, 0) for price in held if price not in whole]
            found[side] = gone + [(price, size) for price, size in wanted.items() if held.get(price) != size]
            self.held[side] = wanted
        return found


class KrakenSession(Session):
    """One connection: status first, then whatever is subscribed, heartbeats when nothing else was sent."""

    def __init__(self, server: KrakenServer, now_ns: int, connection_id: int) -> None:
        self._server = server
        self._connection_id = connection_id
        self._books: dict[str, _Subscription] = {}
        self._trades: set[str] = set()
        self._tickers: set[str] = set()
        self._sent_ns = now_ns

    def on_open(self, now_ns: int) -> list[str]:
        data = {
            "version": "2.0.10",
            "system": "online",
            "api_version": "v2",
            "connection_id": self._connection_id,
        }
        return self._sending([orjson.dumps({"channel": "status", "type": "update", "data": [data]}).decode()], now_ns)

    def on_timer(self, now_ns: int) -> list[str]:
        if not (self._books or self._trades or self._tickers) or now_ns - self._sent_ns < HEARTBEAT_NS:
            return []
        return self._sending(['{"channel":"heartbeat"}'], now_ns)

    def on_client(self, text: str, now_ns: int) -> list[str]:
        try:
            request = orjson.loads(text)
            method = request["method"]
            params = request.get("params") or {}
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return ['{"error":"Malformed JSON","success":false}']
        if method == "ping":
            times = {"time_in": iso(now_ns), "time_out": iso(now_ns)}
            return [orjson.dumps({"method": "pong", "req_id": request.get("req_id"), **times}).decode()]
        if method not in ("subscribe", "unsubscribe"):
            return [orjson.dumps({"error": "Unsupported method", "method": method, "success": False}).decode()]
        if params.get("channel") == "instrument":
            return self._sending(
                [self._acknowledge(method, {"channel": "instrument"}, now_ns), self._instruments()], now_ns
            )
        frames: list[str] = []
        for name in params.get("symbol", []):
            frames += self._one(method, params, name, now_ns)
        return self._sending(frames, now_ns)

    def _one(self, method: str, params: dict[str, Any], name: str, now_ns: int) -> list[str]:
        channel = params.get("channel")
        symbol = self._server.names.get(name)
        if symbol is None:
            return [self._refuse(method, f"Currency pair not supported {name}", name)]
        subscribe = method == "subscribe"
        if channel == "book":
            depth = params.get("depth", 10)
            if depth not in DEPTHS:
                return [self._refuse(method, "Subscription depth not supported", name)]
            result = {"channel": "book", "depth": depth, "symbol": name}
            if not subscribe:
                self._books.pop(symbol, None)
                return [self._acknowledge(method, result, now_ns)]
            self._books[symbol] = _Subscription(depth)
            return [
                self._acknowledge(method, result | {"snapshot": True}, now_ns),
                self._book("snapshot", symbol, now_ns),
            ]
        members = {"trade": self._trades, "ticker": self._tickers}.get(str(channel))
        if members is None:
            return [self._refuse(method, f"Channel {channel} not supported", name)]
        (members.add if subscribe else members.discard)(symbol)
        return [self._acknowledge(method, {"channel": channel, "symbol": name}, now_ns)]

    def on_book(self, event: BookEvent, now_ns: int) -> list[str]:
        frames = []
        if event.symbol in self._books:
            frame = self._book("update", event.symbol, now_ns)
            frames += [frame] if frame else []
        if event.symbol in self._tickers:
            frames.append(self._ticker(event.symbol))
        return self._sending(frames, now_ns)

    def on_trade(self, event: TradeEvent, now_ns: int) -> list[str]:
        if event.symbol not in self._trades:
            return []
        book = self._server.books[event.symbol]
        name = event.symbol.replace("-", "/")
        frame = (
            f'{{"channel":"trade","type":"update","data":[{{"symbol":"{name}","side":"{event.taker_side}",'
            f'"price":{book.price_text(event.price)},"qty":{book.size_text(event.size)},"ord_type":"market",'
            f'"trade_id":{event.trade_id},"timestamp":"{iso(now_ns)}"}}]}}'
        )
        return self._sending([frame], now_ns)

    def _book(self, kind: str, symbol: str, now_ns: int) -> str:
        """A book frame; empty where nothing within the client's depth has changed."""
        book, subscription = self._server.books[symbol], self._books[symbol]
        changes = subscription.changes(book)
        if kind == "update" and not changes["bids"] and not changes["asks"]:
            return ""
        sides = {
            side: ",".join(
                f'{{"price":{book.price_text(price)},"qty":{book.size_text(size)}}}' for price, size in changes[side]
            )
            for side in ("bids", "asks")
        }
        return (
            f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{symbol.replace("-", "/")}",'
            f'"bids":[{sides["bids"]}],"asks":[{sides["asks"]}],'
            f'"checksum":{checksum(book)},"timestamp":"{iso(now_ns)}"}}]}}'
        )

    def _ticker(self, symbol: str) -> str:
        book = self._server.books[symbol]
        (bid, bid_size), (ask, ask_size) = book.top("bids", 1)[0], book.top("asks", 1)[0]
        return (
            f'{{"channel":"ticker","type":"update","data":[{{"symbol":"{symbol.replace("-", "/")}",'
            f'"bid":{book.price_text(bid)},"bid_qty":{book.size_text(bid_size)},'
            f'"ask":{book.price_text(ask)},"ask_qty":{book.size_text(ask_size)}}}]}}'
        )

    def _instruments(self) -> str:
        pairs = []
        for name, symbol in self._server.names.items():
            base, quote = symbols.split(symbol)
            pairs.append({"symbol": name, "base": base, "quote": quote, "status": "online"})
        return orjson.dumps({"channel": "instrument", "type": "snapshot", "data": {"pairs": pairs}}).decode()

    def _acknowledge(self, method: str, result: dict[str, Any], now_ns: int) -> str:
        times = {"time_in": iso(now_ns), "time_out": iso(now_ns)}
        return orjson.dumps({"method": method, "result": result, "success": True, **times}).decode()

    def _refuse(self, method: str, words: str, name: str) -> str:
        return orjson.dumps({"error": words, "method": method, "success": False, "symbol": name}).decode()

    def _sending(self, frames: list[str], now_ns: int) -> list[str]:
        if frames:
            self._sent_ns = now_ns
        return frames
