"""Coinbase Advanced Trade market data as the client sees it: https://docs.cdp.coinbase.com/coinbase-app/
advanced-trade-apis/websocket/websocket-channels (read 2026); the order of frames is that of our captures."""

from typing import Any

import orjson

from services.simulator.exchanges.base import Answer, Server, Session, iso, requested
from services.simulator.market import LEVELS, BookEvent, TradeEvent
from shared import symbols

CHANNELS = {"level2": "l2_data", "market_trades": "market_trades", "heartbeats": "heartbeats"}
SUBSCRIBE_WITHIN_NS = 5_000_000_000
HEARTBEAT_NS = 1_000_000_000


class CoinbaseServer(Server):
    """Product ids are canonical symbols already."""

    def session(self, path: str, now_ns: int) -> Session:
        return CoinbaseSession(self, now_ns)

    def rest(self, path: str, now_ns: int) -> Answer | None:
        place, _ = requested(path)
        if place == "/api/v3/brokerage/time":
            seconds, millis = now_ns // 1_000_000_000, now_ns // 1_000_000
            body = {"iso": iso(now_ns, 9), "epochSeconds": str(seconds), "epochMillis": str(millis)}
            return Answer(200, orjson.dumps(body))
        if place == "/api/v3/brokerage/market/products":
            products = [product for symbol in self.books for product in self._products(symbol)]
            return Answer(200, orjson.dumps({"products": products, "num_products": len(products)}))
        return None

    def _products(self, symbol: str) -> list[dict[str, Any]]:
        """The product, and for a coin against USD its alias against USDC: another name of the same book."""
        base, quote = symbols.split(symbol)
        alias = f"{base}-USDC"
        if quote != "USD" or base in symbols.CASH or alias in self.books:
            return [self._product(symbol, symbol)]
        return [
            self._product(symbol, symbol) | {"alias_to": [alias]},
            self._product(alias, symbol) | {"alias": symbol, "quote_display_symbol": quote},
        ]

    def _product(self, name: str, symbol: str) -> dict[str, Any]:
        book = self.books[symbol]
        base, quote = symbols.split(name)
        halted = symbol in self.halted
        return {
            "product_id": name,
            "price": book.price_text(min(book.asks)),
            "base_increment": book.size_text(1),
            "quote_increment": book.price_text(1),
            "quote_min_size": "1",
            "quote_max_size": "150000000",
            "base_min_size": book.size_text(1),
            "base_max_size": "3400",
            "base_name": base,
            "quote_name": quote,
            "watched": False,
            "is_disabled": halted,
            "new": False,
            "status": "online",
            "cancel_only": False,
            "limit_only": False,
            "post_only": False,
            "trading_disabled": halted,
            "auction_mode": False,
            "product_type": "SPOT",
            "quote_currency_id": quote,
            "base_currency_id": base,
            "fcm_trading_session_details": None,
            "mid_market_price": "",
            "alias": "",
            "alias_to": [],
            "base_display_symbol": base,
            "quote_display_symbol": quote,
            "view_only": False,
            "price_increment": book.price_text(1),
            "display_name": name,
            "product_venue": "CBE",
        }


class CoinbaseSession(Session):
    """`sequence_num` counts every frame of the connection; snapshots come before their acknowledgement."""

    def __init__(self, server: CoinbaseServer, now_ns: int) -> None:
        self._server = server
        self._opened_ns = now_ns
        self._number = 0
        self._subscribed: dict[str, list[str]] = {}
        self._heartbeat_ns = now_ns
        self._heartbeats = 0

    def on_open(self, now_ns: int) -> list[str]:
        return []

    def overdue(self, now_ns: int) -> bool:
        return not self._subscribed and now_ns - self._opened_ns > SUBSCRIBE_WITHIN_NS

    def on_client(self, text: str, now_ns: int) -> list[str]:
        try:
            request = orjson.loads(text)
            kind, channel = request["type"], request["channel"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return ['{"type":"error","message":"failure to parse message"}']
        products = request.get("product_ids", [])
        if channel not in CHANNELS:
            return [orjson.dumps({"type": "error", "message": f"channel {channel} does not exist"}).decode()]
        unknown = [product for product in products if product not in self._server.books]
        if unknown:
            words = f"{', '.join(unknown)} is not a valid product"
            return [orjson.dumps({"type": "error", "message": words}).decode()]
        if kind == "unsubscribe":
            left = [p for p in self._subscribed.get(channel, []) if p not in products]
            self._subscribed[channel] = left
            return [self._acknowledge(now_ns)]
        new = [product for product in products if product not in self._subscribed.get(channel, [])]
        self._subscribed.setdefault(channel, []).extend(new)
        frames = [self._snapshot(channel, product, now_ns) for product in new]
        return [*frames, self._acknowledge(now_ns)]

    def on_book(self, event: BookEvent, now_ns: int) -> list[str]:
        if event.symbol not in self._subscribed.get("level2", ()):
            return []
        rows = [("bid", *level) for level in event.bids] + [("offer", *level) for level in event.asks]
        return [self._levels("update", event.symbol, rows, now_ns)]

    def on_trade(self, event: TradeEvent, now_ns: int) -> list[str]:
        if event.symbol not in self._subscribed.get("market_trades", ()):
            return []
        return [self._trades("update", [event], now_ns)]

    def on_timer(self, now_ns: int) -> list[str]:
        if "heartbeats" not in self._subscribed or now_ns - self._heartbeat_ns < HEARTBEAT_NS:
            return []
        self._heartbeat_ns = now_ns
        self._heartbeats += 1
        now = f"{iso(now_ns, 9)[:-1].replace('T', ' ')} +0000 UTC m=+{self._heartbeats}.0"
        return [self._frame("heartbeats", [{"current_time": now, "heartbeat_counter": self._heartbeats}], now_ns)]

    def _snapshot(self, channel: str, product: str, now_ns: int) -> str:
        book = self._server.books[product]
        if channel == "level2":
            rows = [("bid", *level) for level in book.top("bids", LEVELS)]
            rows += [("offer", *level) for level in book.top("asks", LEVELS)]
            return self._levels("snapshot", product, rows, now_ns)
        price = max(book.bids)
        old = TradeEvent(book.exchange, product, price, max(1, book.bids[price] // 10), "sell", book.last_trade_id)
        return self._trades("snapshot", [old], now_ns - 1_000_000_000)

    def _levels(self, kind: str, product: str, rows: list[tuple[str, int, int]], now_ns: int) -> str:
        book = self._server.books[product]
        updates = [
            {
                "side": side,
                "event_time": iso(now_ns, 9),
                "price_level": book.price_text(price),
                "new_quantity": book.size_text(size),
            }
            for side, price, size in rows
        ]
        return self._frame("l2_data", [{"type": kind, "product_id": product, "updates": updates}], now_ns)

    def _trades(self, kind: str, trades: list[TradeEvent], now_ns: int) -> str:
        rows = [
            {
                "product_id": trade.symbol,
                "trade_id": str(trade.trade_id),
                "price": self._server.books[trade.symbol].price_text(trade.price),
                "size": self._server.books[trade.symbol].size_text(trade.size),
                "time": iso(now_ns, 9),
                "side": trade.taker_side.upper(),
            }
            for trade in reversed(trades)
        ]
        return self._frame("market_trades", [{"type": kind, "trades": rows}], now_ns)

    def _acknowledge(self, now_ns: int) -> str:
        return self._frame("subscriptions", [{"subscriptions": self._subscribed}], now_ns)

    def _frame(self, channel: str, events: list[dict[str, Any]], now_ns: int) -> str:
        frame = {
            "channel": channel,
            "client_id": "",
            "timestamp": iso(now_ns, 9),
            "sequence_num": self._number,
            "events": events,
        }
        self._number += 1
        return orjson.dumps(frame).decode()
