"""Binance spot as the client sees it: combined and raw streams, live subscription, REST depth.
https://github.com/binance/binance-spot-api-docs (web-socket-streams.md, rest-api.md, read 2026-07-21)."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from services.simulator.exchanges.base import Answer, Server, Session, native_names
from services.simulator.market import BookEvent, SimBook, TradeEvent
from shared import symbols


def _eight(text: str) -> str:
    """Eight decimals, as this exchange writes all numbers."""
    whole, _, digits = text.partition(".")
    return f"{whole}.{digits.ljust(8, '0')}"


class BinanceServer(Server):
    """Numbers the updates of each book; all clients see the same numbers."""

    def __init__(self, books: Mapping[str, SimBook]) -> None:
        super().__init__(books)
        self.names = native_names(books, lambda symbol: symbol.replace("-", ""))
        self.first = dict.fromkeys(books, 0)
        self.last = dict.fromkeys(books, 500_000_000)

    def before_book(self, event: BookEvent) -> None:
        symbol = event.symbol
        self.first[symbol] = self.last[symbol] + 1
        self.last[symbol] += len(event.bids) + len(event.asks)

    def session(self, path: str, now_ns: int) -> Session:
        return BinanceSession(self, path)

    def rest(self, path: str, now_ns: int) -> Answer | None:
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/api/v3/time":
            return Answer(200, orjson.dumps({"serverTime": now_ns // 1_000_000}))
        if parts.path == "/api/v3/exchangeInfo":
            return Answer(200, orjson.dumps({"timezone": "UTC", "symbols": [self._info(s) for s in self.books]}))
        if parts.path != "/api/v3/depth":
            return None
        symbol = self.names.get(query.get("symbol", ""))
        if symbol is None:
            return Answer(400, b'{"code":-1121,"msg":"Invalid symbol."}')
        limit = query.get("limit", "100")
        if not limit.isdigit() or not 1 <= int(limit) <= 5000:
            return Answer(400, b'{"code":-1130,"msg":"Data sent for parameter \'limit\' is not valid."}')
        book = self.books[symbol]
        sides = {
            side: [[_eight(book.price_text(p)), _eight(book.size_text(s))] for p, s in book.top(side, int(limit))]
            for side in ("bids", "asks")
        }
        return Answer(200, orjson.dumps({"lastUpdateId": self.last[symbol], **sides}))

    def _info(self, symbol: str) -> dict[str, Any]:
        book = self.books[symbol]
        base, quote = symbols.split(symbol)
        filters = [
            {"filterType": "PRICE_FILTER", "tickSize": _eight(book.price_text(1))},
            {"filterType": "LOT_SIZE", "stepSize": _eight("0.00001000")},
            {"filterType": "NOTIONAL", "minNotional": "5.00000000"},
        ]
        name = symbol.replace("-", "")
        return {"symbol": name, "status": "TRADING", "baseAsset": base, "quoteAsset": quote, "filters": filters}


class BinanceSession(Session):
    """Streams named in the address or subscribed later. An unknown stream is acknowledged and silent."""

    def __init__(self, server: BinanceServer, path: str) -> None:
        self._server = server
        parts = urlsplit(path)
        if parts.path.startswith("/ws/"):
            self._combined = False
            names = parts.path.removeprefix("/ws/").split("/")
        else:
            self._combined = parts.path != "/ws"
            names = parse_qs(parts.query).get("streams", [""])[0].split("/")
        self._streams = {name for name in names if name}

    def on_open(self, now_ns: int) -> list[str]:
        return []

    def on_client(self, text: str, now_ns: int) -> list[str]:
        try:
            request = orjson.loads(text)
            method, params, number = request["method"], request.get("params", []), request.get("id")
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return ['{"code":3,"msg":"Invalid JSON: expected value"}']
        result: object = None
        if method == "SUBSCRIBE":
            self._streams.update(params)
        elif method == "UNSUBSCRIBE":
            self._streams.difference_update(params)
        elif method == "LIST_SUBSCRIPTIONS":
            result = sorted(self._streams)
        else:
            return [orjson.dumps({"code": 2, "msg": f"Invalid request: unknown variant `{method}`"}).decode()]
        return [orjson.dumps({"result": result, "id": number}).decode()]

    def on_book(self, event: BookEvent, now_ns: int) -> list[str]:
        name = event.symbol.replace("-", "")
        server, book = self._server, self._server.books[event.symbol]
        frames = []
        for stream in (f"{name.lower()}@depth@100ms", f"{name.lower()}@depth"):
            if stream in self._streams:
                data = {
                    "e": "depthUpdate",
                    "E": now_ns // 1_000_000,
                    "s": name,
                    "U": server.first[event.symbol],
                    "u": server.last[event.symbol],
                    "b": [[_eight(book.price_text(p)), _eight(book.size_text(s))] for p, s in event.bids],
                    "a": [[_eight(book.price_text(p)), _eight(book.size_text(s))] for p, s in event.asks],
                }
                frames.append(self._frame(stream, data))
        if (stream := f"{name.lower()}@bookTicker") in self._streams:
            (bid, bid_size), (ask, ask_size) = book.top("bids", 1)[0], book.top("asks", 1)[0]
            data = {
                "u": server.last[event.symbol],
                "s": name,
                "b": _eight(book.price_text(bid)),
                "B": _eight(book.size_text(bid_size)),
                "a": _eight(book.price_text(ask)),
                "A": _eight(book.size_text(ask_size)),
            }
            frames.append(self._frame(stream, data))
        return frames

    def on_trade(self, event: TradeEvent, now_ns: int) -> list[str]:
        name = event.symbol.replace("-", "")
        stream = f"{name.lower()}@trade"
        if stream not in self._streams:
            return []
        book = self._server.books[event.symbol]
        data = {
            "e": "trade",
            "E": now_ns // 1_000_000,
            "s": name,
            "t": event.trade_id,
            "p": _eight(book.price_text(event.price)),
            "q": _eight(book.size_text(event.size)),
            "T": now_ns // 1_000_000,
            "m": event.taker_side == "sell",
            "M": True,
        }
        return [self._frame(stream, data)]

    def _frame(self, stream: str, data: dict[str, Any]) -> str:
        return orjson.dumps({"stream": stream, "data": data} if self._combined else data).decode()
