"""What is really there: computed from the generator's own books, independently of the plan and of the detector.

A gap is a moment at which buying on one exchange and selling on another pays at least `detector.open_net_bps` at
the size of maximum profit, walking the levels that the collectors publish. Floats on purpose: another arithmetic
than the detector's, so that the two do not share a mistake.
"""

import datetime
import math
from dataclasses import dataclass
from typing import Any

from services.simulator.market import Market, SimBook
from shared import symbols
from shared.fees import taker_fee
from shared.settings import Settings

FloatLevels = list[tuple[float, float]]


@dataclass(slots=True)
class OpenGap:
    """A gap that is there now."""

    start_ns: int
    peak_bps: float


def net_edge_bps(
    asks: FloatLevels, bids: FloatLevels, buy_factor: float, sell_factor: float, most_usd: float, buy_rate: float
) -> float:
    """Return on the cost at the size of maximum profit, in bps; minus infinity if not even the first unit pays.

    Args:
        buy_factor, sell_factor: What a unit's price is multiplied with: conversion and fee.
        most_usd: Cap of the bought value in USD without fees; `buy_rate` converts to it.
    """
    asks, bids = [list(level) for level in asks], [list(level) for level in bids]  # type: ignore[misc]
    cost = proceeds = notional = 0.0
    while asks and bids and bids[0][0] * sell_factor > asks[0][0] * buy_factor:
        (ask, ask_left), (bid, bid_left) = asks[0], bids[0]
        size = min(ask_left, bid_left, (most_usd - notional) / (ask * buy_rate))
        if size <= 0:
            break
        cost += size * ask * buy_factor
        proceeds += size * bid * sell_factor
        notional += size * ask * buy_rate
        asks[0] = (ask, ask_left - size)
        bids[0] = (bid, bid_left - size)
        asks = asks if asks[0][1] > 0 else asks[1:]
        bids = bids if bids[0][1] > 0 else bids[1:]
    return (proceeds / cost - 1) * 10_000 if cost > 0 else -math.inf


class Truth:
    """Follows a market and keeps what gaps there are."""

    def __init__(self, settings: Settings, market: Market, today: datetime.date) -> None:
        self._settings = settings
        self._market = market
        self._open: dict[tuple[SimKey, SimKey], OpenGap] = {}
        self._fees: dict[SimKey, tuple[float, bool]] = {}
        self._by_base: dict[str, list[SimBook]] = {}
        for key, book in market.books.items():
            exchange = settings.exchanges[book.exchange]
            fee = taker_fee(exchange.fees, book.symbol, exchange.fee_tier, today)
            self._fees[key] = (math.inf, False) if fee is None else (float(fee.taker_bps) / 10_000, fee.in_base)
            if not symbols.is_rate(book.symbol):
                self._by_base.setdefault(symbols.base_of(book.symbol), []).append(book)

    def look(self, base: str, now_ns: int) -> list[dict[str, Any]]:
        """Compare all books of a coin as they stand now; returns the gaps that have ended."""
        ended = []
        books = self._by_base.get(base, [])
        for buy in books:
            for sell in books:
                if buy.exchange == sell.exchange:
                    continue
                key = ((buy.exchange, buy.symbol), (sell.exchange, sell.symbol))
                edge = self._edge(buy, sell)
                gap = self._open.get(key)
                if edge >= float(self._settings.detector.open_net_bps):
                    if gap is None:
                        self._open[key] = OpenGap(now_ns, edge)
                    else:
                        gap.peak_bps = max(gap.peak_bps, edge)
                elif gap is not None:
                    del self._open[key]
                    ended.append(_line(base, key, gap, now_ns, still_open=False))
        return ended

    def still_open(self, now_ns: int) -> list[dict[str, Any]]:
        """The gaps that are there at the end."""
        return [_line(symbols.base_of(key[0][1]), key, gap, now_ns, still_open=True) for key, gap in self._open.items()]

    def _edge(self, buy: SimBook, sell: SimBook) -> float:
        obtain, give = self._rate(buy.symbol, 1), self._rate(sell.symbol, 0)
        if obtain is None or give is None:
            return -math.inf
        buy_fee, in_base = self._fees[(buy.exchange, buy.symbol)]
        buy_factor = obtain / (1 - buy_fee) if in_base else obtain * (1 + buy_fee)
        sell_factor = give * (1 - self._fees[(sell.exchange, sell.symbol)][0])
        best_ask, best_bid = buy.price(min(buy.asks)), sell.price(max(sell.bids))
        if best_bid * sell_factor <= best_ask * buy_factor:
            return -math.inf
        levels = self._settings.collector.levels
        asks = [(buy.price(price), buy.size(size)) for price, size in buy.top("asks", levels)]
        bids = [(sell.price(price), sell.size(size)) for price, size in sell.top("bids", levels)]
        most = float(self._settings.detector.max_notional_usd)
        return net_edge_bps(asks, bids, buy_factor, sell_factor, most, obtain)

    def _rate(self, symbol: str, side: int) -> float | None:
        """USD for a unit of the symbol's quote currency: bid (0) or ask (1), from the exchange the detector asks."""
        _, quote = symbols.split(symbol)
        if quote == "USD":
            return 1.0
        for exchange in self._settings.detector.rate_exchanges:
            book = self._market.books.get((exchange, f"{quote}-USD"))
            if book is not None:
                return book.price(min(book.asks) if side else max(book.bids))
        return None


SimKey = tuple[str, str]


def _line(base: str, key: tuple[SimKey, SimKey], gap: OpenGap, end_ns: int, *, still_open: bool) -> dict[str, Any]:
    (buy_exchange, buy_symbol), (sell_exchange, sell_symbol) = key
    return {
        "base": base,
        "buy": {"exchange": buy_exchange, "symbol": buy_symbol},
        "sell": {"exchange": sell_exchange, "symbol": sell_symbol},
        "start_ns": gap.start_ns,
        "end_ns": end_ns,
        "edge_bps": round(gap.peak_bps, 4),
        "open": still_open,
    }
