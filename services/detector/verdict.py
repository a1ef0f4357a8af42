"""One verdict on one ordered pair of books at one moment: every gate, in order. Pure."""

from decimal import Decimal
from typing import NamedTuple

from services.detector import edge
from services.detector.books import HeldBook, HeldRate, Rates, exact
from services.detector.edge import ONE, Evaluation, Side
from shared.messages import Reason
from shared.settings import DetectorSettings, Settings

MS = 1_000_000


class Verdict(NamedTuple):
    """What a pair is now.

    Attributes:
        crossing: Whether the bid is above the ask, as they stand or converted: else there is nothing to judge.
        reasons: Why it is no opportunity; empty if it is one at `open_net_bps`.
        rates: Conversions used: (rate, side).
        evaluation: The numbers; None without rates or fees.
        naive_bps: Gap of the tops without conversion and fees.
    """

    crossing: bool
    reasons: tuple[Reason, ...]
    rates: tuple[tuple[HeldRate, str], ...]
    evaluation: Evaluation | None
    naive_bps: Decimal | None


NO_CROSSING = Verdict(False, (), (), None, None)


class Judge:
    """Applies the gates of the settings."""

    def __init__(self, settings: Settings, rates: Rates) -> None:
        self._settings: DetectorSettings = settings.detector
        self._exchanges = settings.exchanges
        self._rates = rates
        self._max_silence_ns = self._settings.max_silence_ms * MS
        self._not_the_same = frozenset(self._settings.not_the_same)
        self._walks: dict[tuple[tuple[str, str], tuple[str, str]], tuple[object, Evaluation]] = {}

    def usable(self, book: HeldBook, now_ns: int) -> bool:
        return book.usable(now_ns, self._max_silence_ns)

    def crosses(self, buy: HeldBook, sell: HeldBook, now_ns: int) -> bool:
        """Gross crossing: the bid is above the ask, as they stand or both converted to USD. No fees."""
        if sell.best_bid > buy.best_ask:
            return True
        if buy.quote == sell.quote:
            return False
        obtain, give = self._rate(buy.quote, "ask", now_ns), self._rate(sell.quote, "bid", now_ns)
        return obtain is not None and give is not None and sell.best_bid * give > buy.best_ask * obtain

    def verdict(self, buy: HeldBook, sell: HeldBook, now_ns: int) -> Verdict:
        """All gates for buying on one book and selling on the other. Both books are usable."""
        if not self.crosses(buy, sell, now_ns):
            return NO_CROSSING
        naive = edge.ratio_bps(Decimal(repr(sell.best_bid)), Decimal(repr(buy.best_ask)))
        reasons = self._gates_of_time(buy, sell, now_ns)
        if not self._not_the_same.isdisjoint((f"{buy.exchange}:{buy.base}", f"{sell.exchange}:{sell.base}")):
            reasons.append(Reason.IDENTITY)
        used, missing = self._conversion(buy, sell, now_ns)
        buy_fee, sell_fee = buy.fee(now_ns), sell.fee(now_ns)
        if buy_fee is None or sell_fee is None:
            reasons.append(Reason.FEES)  # a fee that nobody knows is no fee of zero
        if missing or buy_fee is None or sell_fee is None:
            return Verdict(True, tuple(dict.fromkeys([*reasons, *missing])), used, None, naive)
        found = self._evaluate(buy, sell, buy_fee, sell_fee, used, now_ns)
        reasons.extend(found.reasons)
        net = found.net_bps
        if not found.reasons and net is not None:
            if net > self._settings.sanity_cap_bps:
                reasons.append(Reason.SANITY)
            elif net < self._settings.open_net_bps:
                reasons.append(Reason.THRESHOLD)
        return Verdict(True, tuple(reasons), used, found, found.naive_bps)

    def _gates_of_time(self, buy: HeldBook, sell: HeldBook, now_ns: int) -> list[Reason]:
        reasons = []
        if now_ns - min(buy.received_ns, sell.received_ns) > self._settings.max_book_age_ms * MS:
            reasons.append(Reason.AGE)
        if abs(buy.alive_ns - sell.alive_ns) > self._settings.max_skew_ms * MS:
            reasons.append(Reason.SKEW)
        return reasons

    def _rate(self, quote: str, side: str, now_ns: int) -> float | None:
        if quote == "USD":
            return 1.0
        rate, _ = self._rates.find(quote, now_ns)
        return None if rate is None else (rate.ask if side == "ask" else rate.bid)

    def _conversion(
        self, buy: HeldBook, sell: HeldBook, now_ns: int
    ) -> tuple[tuple[tuple[HeldRate, str], ...], list[Reason]]:
        used: list[tuple[HeldRate, str]] = []
        missing: list[Reason] = []
        for quote, side in ((buy.quote, "ask"), (sell.quote, "bid")):
            if quote == "USD":
                continue
            rate, known = self._rates.find(quote, now_ns)
            if rate is None:
                missing.append(Reason.RATE_STALE if known else Reason.RATE_MISSING)
            else:
                used.append((rate, side))
        return tuple(used), missing

    def _evaluate(
        self,
        buy: HeldBook,
        sell: HeldBook,
        buy_fee: Decimal,
        sell_fee: Decimal,
        used: tuple[tuple[HeldRate, str], ...],
        now_ns: int,
    ) -> Evaluation:
        """The exact walk, made again only when something that it rests on has changed."""
        prices = {side: Decimal(repr(rate.ask if side == "ask" else rate.bid)) for rate, side in used}
        obtain, give = prices.get("ask", ONE), prices.get("bid", ONE)
        basis = (buy.version, sell.version, buy_fee, sell_fee, obtain, give)
        pair = (buy.key, sell.key)
        held = self._walks.get(pair)
        if held is not None and held[0] == basis:
            return held[1]
        terms = (
            Side(buy_fee, obtain, buy.settings.lot_step, buy.settings.min_notional_usd),
            Side(sell_fee, give, sell.settings.lot_step, sell.settings.min_notional_usd),
        )
        loop = self._closed_loop(buy, sell, used, now_ns)
        found = edge.evaluate(
            exact(buy.asks), exact(sell.bids), *terms, max_notional=self._settings.max_notional_usd, closed_loop=loop
        )
        self._walks[pair] = (basis, found)
        return found

    def forget(self, buy: HeldBook, sell: HeldBook) -> None:
        """Drop the remembered walk of a pair that no longer crosses."""
        self._walks.pop((buy.key, sell.key), None)

    def _closed_loop(
        self, buy: HeldBook, sell: HeldBook, used: tuple[tuple[HeldRate, str], ...], now_ns: int
    ) -> Decimal | None:
        """Units of the spent currency per unit received, with the taker fees of the conversions."""
        if buy.quote == sell.quote:
            return ONE
        factor = ONE
        for rate, side in used:
            fee = self._conversion_fee(rate, now_ns)
            if fee is None:
                return None
            price = Decimal(repr(rate.ask if side == "ask" else rate.bid))
            factor = edge.EXACT.divide(factor * (1 - fee), price) if side == "ask" else factor * price * (1 - fee)
        return factor

    def _conversion_fee(self, rate: HeldRate, now_ns: int) -> Decimal | None:
        settings = self._exchanges.get(rate.exchange)
        return None if settings is None else HeldBook(rate.exchange, rate.symbol, settings).fee(now_ns)
