"""Kraken spot WebSocket v2 as the client sees it: https://docs.kraken.com/api/docs/websocket-v2/book (read
2026-02-26). Numbers are bare, with all their digits (`63000.0`, `0.00000000`): the checksum is made of those digits.

A level that falls out of the subscribed depth is not removed by a message: the client must truncate. One that comes
back into it is sent again.
"""

import datetime
import zlib
from typing import Any

import orjson

from services.simulator.exchanges.base import Answer, Server, Session, iso, least_size, native_names, requested
from services.simulator.market import BookEvent, SimBook, TradeEvent
from shared import symbols

DEPTHS = (10, 25, 100, 500, 1000)
HEARTBEAT_NS = 1_000_000_000

V1_NAMES = {"BTC": "XBT", "DOGE": "XDG"}
V1_CODES = {
    **{name: f"X{name}" for name in ("XBT", "XDG", "ETH", "ETC", "LTC", "XRP", "XLM", "XMR", "ZEC", "MLN", "REP")},
    **{name: f"Z{name}" for name in ("USD", "EUR", "GBP", "CAD", "JPY", "AUD")},
}
"""REST goes on with the names of version 1; the oldest assets have four letters there."""


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
        place, query = requested(path)
        if place == "/0/public/Time":
            moment = datetime.datetime.fromtimestamp(now_ns // 1_000_000_000, datetime.UTC)
            result: dict[str, Any] = {
                "unixtime": now_ns // 1_000_000_000,
                "rfc1123": f"{moment:%a, %d %b %y %H:%M:%S} +0000",
            }
        elif place == "/0/public/AssetPairs":
            pairs = [self._pair(symbol) for symbol in self.books]
            if "pair" in query:
                wanted = query["pair"].split(",")
                pairs = [(key, pair) for key, pair in pairs if {key, pair["altname"], pair["wsname"]} & {*wanted}]
                if len(pairs) != len(wanted):
                    return Answer(200, b'{"error":["EQuery:Unknown asset pair"]}')
            result = dict(pairs)
        else:
            return None
        return Answer(200, orjson.dumps({"error": [], "result": result}))

    def status(self, symbol: str) -> str:
        """Of a pair, as both `AssetPairs` and the channel `instrument` say it."""
        return "cancel_only" if symbol in self.halted else "online"

    def _pair(self, symbol: str) -> tuple[str, dict[str, Any]]:
        """Key and row of a pair: `XXBTZUSD` where both sides have their old codes, else `XBTUSDT`."""
        book = self.books[symbol]
        base, quote = (V1_NAMES.get(asset, asset) for asset in symbols.split(symbol))
        old = (base in V1_CODES and quote in V1_CODES and base != "XDG") or (base, quote) == ("USDT", "USD")
        codes = V1_CODES.get(base, base), V1_CODES.get(quote, quote)
        row = {
            "altname": f"{base}{quote}",
            "wsname": f"{base}/{quote}",
            "aclass_base": "currency",
            "base": codes[0],
            "aclass_quote": "currency",
            "quote": codes[1],
            "lot": "unit",
            "cost_decimals": 5,
            "pair_decimals": book.price_digits,
            "lot_decimals": book.size_digits,
            "lot_multiplier": 1,
            "leverage_buy": [],
            "leverage_sell": [],
            "fees": [],
            "fees_maker": [],
            "fee_volume_currency": "ZUSD",
            "margin_call": 80,
            "margin_stop": 40,
            "ordermin": least_size(book, 5),
            "costmin": "0.5",
            "tick_size": book.price_text(1),
            "status": self.status(symbol),
        }
        return "".join(codes) if old else f"{base}{quote}", row


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
        return self._sending(self.status_frames(online=True), now_ns)

    def status_frames(self, online: bool) -> list[str]:
        """The exchange's state: on connecting, and to every connection when it changes."""
        data = {
            "version": "2.0.10",
            "system": "online" if online else "cancel_only",
            "api_version": "v2",
            "connection_id": self._connection_id,
        }
        return [orjson.dumps({"channel": "status", "type": "update", "data": [data]}).decode()]

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
            times = {"time_in": iso(now_ns, 6), "time_out": iso(now_ns, 6)}
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
            f'"trade_id":{event.trade_id},"timestamp":"{iso(now_ns, 6)}"}}]}}'
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
            f'"checksum":{checksum(book)},"timestamp":"{iso(now_ns, 6)}"}}]}}'
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
            pairs.append({"symbol": name, "base": base, "quote": quote, "status": self._server.status(symbol)})
        return orjson.dumps({"channel": "instrument", "type": "snapshot", "data": {"pairs": pairs}}).decode()

    def _acknowledge(self, method: str, result: dict[str, Any], now_ns: int) -> str:
        times = {"time_in": iso(now_ns, 6), "time_out": iso(now_ns, 6)}
        return orjson.dumps({"method": method, "result": result, "success": True, **times}).decode()

    def _refuse(self, method: str, words: str, name: str) -> str:
        return orjson.dumps({"error": words, "method": method, "success": False, "symbol": name}).decode()

    def _sending(self, frames: list[str], now_ns: int) -> list[str]:
        if frames:
            self._sent_ns = now_ns
        return frames
