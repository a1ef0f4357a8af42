"""Binance spot as the client sees it: combined and raw streams, live subscription, REST depth.
https://github.com/binance/binance-spot-api-docs (web-socket-streams.md, rest-api.md, read 2026-07-21)."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from services.simulator.exchanges.base import Answer, Server, Session, native_names, requested
from services.simulator.market import BookEvent, SimBook, TradeEvent
from shared import symbols

LOT_STEP = "0.00001000"
UNKNOWN_SYMBOL = Answer(400, b'{"code":-1121,"msg":"Invalid symbol."}')


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
        place, query = requested(path)
        if place == "/api/v3/time":
            return Answer(200, orjson.dumps({"serverTime": now_ns // 1_000_000}))
        if place == "/api/v3/exchangeInfo":
            return self._exchange_info(query, now_ns)
        if place != "/api/v3/depth":
            return None
        symbol = self.names.get(query.get("symbol", ""))
        if symbol is None:
            return UNKNOWN_SYMBOL
        limit = query.get("limit", "100")
        if not limit.isdigit() or not 1 <= int(limit) <= 5000:
            return Answer(400, b'{"code":-1130,"msg":"Data sent for parameter \'limit\' is not valid."}')
        book = self.books[symbol]
        sides = {
            side: [[_eight(book.price_text(p)), _eight(book.size_text(s))] for p, s in book.top(side, int(limit))]
            for side in ("bids", "asks")
        }
        return Answer(200, orjson.dumps({"lastUpdateId": self.last[symbol], **sides}))

    def _exchange_info(self, query: dict[str, str], now_ns: int) -> Answer:
        """All symbols, or those of `symbol=BTCUSDT` or `symbols=["BTCUSDT","ETHUSDT"]`."""
        names = [query["symbol"]] if "symbol" in query else list(self.names)
        if "symbols" in query:
            try:
                names = [str(name) for name in orjson.loads(query["symbols"])]
            except (orjson.JSONDecodeError, TypeError):
                return Answer(400, b'{"code":-1100,"msg":"Illegal characters found in parameter \'symbols\'."}')
        if not {*names} <= {*self.names}:
            return UNKNOWN_SYMBOL
        weights = ("REQUEST_WEIGHT", "MINUTE", 1, 6000), ("RAW_REQUESTS", "MINUTE", 5, 61_000)
        body = {
            "timezone": "UTC",
            "serverTime": now_ns // 1_000_000,
            "rateLimits": [
                dict(zip(("rateLimitType", "interval", "intervalNum", "limit"), weight, strict=True))
                for weight in weights
            ],
            "exchangeFilters": [],
            "symbols": [self._info(name) for name in names],
        }
        return Answer(200, orjson.dumps(body))

    def _info(self, name: str) -> dict[str, Any]:
        symbol = self.names[name]
        book = self.books[symbol]
        base, quote = symbols.split(symbol)
        tick = _eight(book.price_text(1))
        filters = [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000.00000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": LOT_STEP, "maxQty": "9000.00000000", "stepSize": LOT_STEP},
            {
                "filterType": "NOTIONAL",
                "minNotional": "5.00000000",
                "applyMinToMarket": True,
                "maxNotional": "9000000.00000000",
                "applyMaxToMarket": False,
                "avgPriceMins": 5,
            },
        ]
        return {
            "symbol": name,
            "status": "HALT" if symbol in self.halted else "TRADING",
            "baseAsset": base,
            "baseAssetPrecision": 8,
            "quoteAsset": quote,
            "quotePrecision": 8,
            "quoteAssetPrecision": 8,
            "baseCommissionPrecision": 8,
            "quoteCommissionPrecision": 8,
            "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
            "icebergAllowed": True,
            "ocoAllowed": True,
            "quoteOrderQtyMarketAllowed": True,
            "isSpotTradingAllowed": True,
            "isMarginTradingAllowed": False,
            "filters": filters,
            "permissions": [],
            "permissionSets": [["SPOT"]],
        }


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

    def announce_end(self, now_ns: int) -> list[str]:
        return [self._frame("!serverShutdown", {"e": "serverShutdown", "E": now_ns // 1_000_000})]

    def _frame(self, stream: str, data: dict[str, Any]) -> str:
        return orjson.dumps({"stream": stream, "data": data} if self._combined else data).decode()
