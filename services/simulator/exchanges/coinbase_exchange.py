"""Coinbase Exchange's feed as the client sees it: https://docs.cdp.coinbase.com/exchange/websocket-feed (read
2025-05-17), frames as captured in 2021, 2022 and August 2026. Another protocol for the books of Coinbase.
"""

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from services.simulator.exchanges.base import Answer, Server, Session, iso, requested, trimmed
from services.simulator.market import LEVELS, BookEvent, SimBook, TradeEvent
from shared import symbols

CHANNELS = {"level2_batch": "level2_50", "matches": "matches", "heartbeat": "heartbeat"}
"""Channels, and what the acknowledgement calls them."""

SECRET_CHANNELS = ("level2", "level3", "full")
SUBSCRIBE_WITHIN_NS = 5_000_000_000
HEARTBEAT_NS = 1_000_000_000


class _Match(NamedTuple):
    """A trade with its place in the product's sequence."""

    event: TradeEvent
    sequence: int
    at_ns: int


class CoinbaseExchangeServer(Server):
    """Product ids are canonical symbols already. `sequence` counts every message of the engine, per product."""

    def __init__(self, books: Mapping[str, SimBook]) -> None:
        super().__init__(books)
        self.sequence = dict.fromkeys(books, 134_905_859_981)
        self._matches: dict[str, _Match] = {}

    def before_book(self, event: BookEvent) -> None:
        self.sequence[event.symbol] += len(event.bids) + len(event.asks)

    def match(self, event: TradeEvent, now_ns: int) -> _Match:
        """Number the trade, the first time that a client is told of it."""
        known = self._matches.get(event.symbol)
        if known is None or known.event.trade_id != event.trade_id:
            self.sequence[event.symbol] += 1
            known = self._matches[event.symbol] = _Match(event, self.sequence[event.symbol], now_ns)
        return known

    def last_match(self, symbol: str, now_ns: int) -> _Match:
        """The product's newest trade; one of a second ago where nobody was there to hear it."""
        book, known = self.books[symbol], self._matches.get(symbol)
        if known is not None and known.event.trade_id == book.last_trade_id:
            return known
        price = max(book.bids)
        event = TradeEvent(book.exchange, symbol, price, max(1, book.bids[price] // 10), "sell", book.last_trade_id)
        return _Match(event, self.sequence[symbol], now_ns - 1_000_000_000)

    def session(self, path: str, now_ns: int) -> Session:
        return CoinbaseExchangeSession(self, now_ns)

    def rest(self, path: str, now_ns: int) -> Answer | None:
        place, query = requested(path)
        match place.strip("/").split("/"):
            case ["time"]:
                return Answer(200, orjson.dumps({"iso": iso(now_ns, 3), "epoch": now_ns // 1_000_000 / 1000}))
            case ["products"]:
                return Answer(200, orjson.dumps([self._product(symbol) for symbol in self.books]))
            case ["products", product, "book"]:
                return self._book(product, query.get("level", "1"), now_ns)
            case _:
                return None

    def _product(self, symbol: str) -> dict[str, Any]:
        book = self.books[symbol]
        base, quote = symbols.split(symbol)
        return {
            "id": symbol,
            "base_currency": base,
            "quote_currency": quote,
            "quote_increment": book.price_text(1),
            "base_increment": book.size_text(1),
            "display_name": symbol,
            "min_market_funds": "1",
            "margin_enabled": False,
            "post_only": False,
            "limit_only": False,
            "cancel_only": False,
            "status": "online",
            "status_message": "",
            "trading_disabled": symbol in self.halted,
            "fx_stablecoin": symbols.is_rate(symbol),
            "max_slippage_percentage": "0.02000000",
            "auction_mode": False,
            "high_bid_limit_percentage": "",
        }

    def _book(self, product: str, level: str, now_ns: int) -> Answer:
        book = self.books.get(product)
        if book is None:
            return Answer(404, b'{"message":"NotFound"}')
        if level not in ("1", "2"):
            return Answer(400, b'{"message":"Invalid level"}')
        sides = {
            side: [
                [trimmed(book.price_text(price)), trimmed(book.size_text(size)), size % 7 + 1]
                for price, size in book.top(side, 1 if level == "1" else LEVELS)
            ]
            for side in ("bids", "asks")
        }
        numbers = {"sequence": self.sequence[product], "auction_mode": False, "auction": None}
        return Answer(200, orjson.dumps({**sides, **numbers, "time": iso(now_ns, 9)}))


class CoinbaseExchangeSession(Session):
    """One connection: closed unless it subscribes within five seconds; data comes before the acknowledgement."""

    def __init__(self, server: CoinbaseExchangeServer, now_ns: int) -> None:
        self._server = server
        self._opened_ns = now_ns
        self._heartbeat_ns = now_ns
        self._subscribed: dict[str, list[str]] = {}

    def on_open(self, now_ns: int) -> list[str]:
        return []

    def overdue(self, now_ns: int) -> bool:
        return not self._subscribed and now_ns - self._opened_ns > SUBSCRIBE_WITHIN_NS

    def on_client(self, text: str, now_ns: int) -> list[str]:
        try:
            request = orjson.loads(text)
            kind, products = request["type"], request.get("product_ids") or []
            channels = dict(_channel(channel, products) for channel in request.get("channels") or [])
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return [_error("Malformed JSON", text)]
        if kind == "unsubscribe":
            return self._unsubscribe(channels or dict.fromkeys(self._subscribed, products))
        if kind != "subscribe":
            return [_error("Failed to subscribe", f"Type {kind} is not supported")]
        for channel, wanted in channels.items():
            if refusal := self._refusal(channel, wanted):
                return [_error("Failed to subscribe", refusal)]
        if not channels:
            return [_error("Failed to subscribe", "channels or product_ids required")]
        frames = []
        for channel, wanted in channels.items():
            held = self._subscribed.setdefault(channel, [])
            new = [product for product in dict.fromkeys(wanted) if product not in held]
            held += new
            frames += [frame for product in new for frame in self._first(channel, product, now_ns)]
        return [*frames, self._acknowledge()]

    def on_book(self, event: BookEvent, now_ns: int) -> list[str]:
        if event.symbol not in self._subscribed.get("level2_batch", ()):
            return []
        book = self._server.books[event.symbol]
        sided = [("buy", *level) for level in event.bids] + [("sell", *level) for level in event.asks]
        changes = [[side, book.price_text(price), book.size_text(size)] for side, price, size in sided]
        frame = {"type": "l2update", "product_id": event.symbol, "changes": changes, "time": iso(now_ns, 6)}
        return [orjson.dumps(frame).decode()]

    def on_trade(self, event: TradeEvent, now_ns: int) -> list[str]:
        match = self._server.match(event, now_ns)
        if event.symbol not in self._subscribed.get("matches", ()):
            return []
        return [self._trade("match", match)]

    def on_timer(self, now_ns: int) -> list[str]:
        if now_ns - self._heartbeat_ns < HEARTBEAT_NS:
            return []
        self._heartbeat_ns = now_ns
        frames = [
            {
                "type": "heartbeat",
                "last_trade_id": self._server.books[product].last_trade_id,
                "product_id": product,
                "sequence": self._server.sequence[product],
                "time": iso(now_ns, 6),
            }
            for product in self._subscribed.get("heartbeat", ())
        ]
        return [orjson.dumps(frame).decode() for frame in frames]

    def _refusal(self, channel: str, products: list[str]) -> str:
        """Why not; empty if nothing speaks against it."""
        if channel in SECRET_CHANNELS:
            return (
                "level2, level3, and full channels now require authentication. "
                "https://docs.cloud.coinbase.com/exchange/docs/websocket-auth"
            )
        if channel not in CHANNELS:
            return f"{channel} is not a valid channel"
        if not products:
            return f"{channel} requires product_ids"
        unknown = [product for product in products if product not in self._server.books]
        return f"{unknown[0]} is not a valid product" if unknown else ""

    def _unsubscribe(self, channels: dict[str, list[str]]) -> list[str]:
        """Without products: from all of them."""
        for channel, products in channels.items():
            held = self._subscribed.get(channel, [])
            self._subscribed[channel] = [product for product in held if products and product not in products]
        return [self._acknowledge()]

    def _first(self, channel: str, product: str, now_ns: int) -> list[str]:
        """What a new subscription brings at once."""
        if channel == "matches":
            return [self._trade("last_match", self._server.last_match(product, now_ns))]
        if channel != "level2_batch":
            return []
        book = self._server.books[product]
        sides = {
            side: [[book.price_text(price), book.size_text(size)] for price, size in book.top(side, LEVELS)]
            for side in ("asks", "bids")
        }
        return [orjson.dumps({"type": "snapshot", "product_id": product, **sides}).decode()]

    def _trade(self, kind: str, match: _Match) -> str:
        event = match.event
        book = self._server.books[event.symbol]
        maker, taker = (str(uuid.uuid5(uuid.NAMESPACE_OID, f"{event.symbol}{event.trade_id}{who}")) for who in "mt")
        frame = {
            "type": kind,
            "trade_id": event.trade_id,
            "maker_order_id": maker,
            "taker_order_id": taker,
            "side": "sell" if event.taker_side == "buy" else "buy",
            "size": trimmed(book.size_text(event.size)),
            "price": trimmed(book.price_text(event.price)),
            "product_id": event.symbol,
            "sequence": match.sequence,
            "time": iso(match.at_ns, 6),
        }
        return orjson.dumps(frame).decode()

    def _acknowledge(self) -> str:
        """The whole current set, whatever was asked."""
        channels = [
            {"name": CHANNELS[channel], "product_ids": products, "account_ids": None}
            for channel, products in self._subscribed.items()
            if products
        ]
        return orjson.dumps({"type": "subscriptions", "channels": channels}).decode()


def _channel(channel: str | dict[str, Any], products: list[str]) -> tuple[str, list[str]]:
    """A channel and its products: named alone, or with products of its own."""
    if isinstance(channel, str):
        return channel, list(products)
    return channel["name"], list(channel.get("product_ids") or products)


def _error(message: str, reason: str) -> str:
    return orjson.dumps({"type": "error", "message": message, "reason": reason}).decode()
