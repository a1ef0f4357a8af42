"""From verdicts to messages: one rejection or one opportunity open at a time for each crossing pair. Pure.

A pair that passes every gate is first a rejection with reason `persistence`; when it has passed for
`persistence_ms` the rejection closes (`accepted`) and the opportunity opens, with the moment it first passed as
`opened_ns`. It closes below `close_net_bps`, which is lower than `open_net_bps`, or when a gate fails.
"""

import hashlib
from decimal import Decimal
from typing import Any

import orjson

from services.detector.books import HeldBook
from services.detector.context import Trades, imbalance
from services.detector.edge import ZERO
from services.detector.verdict import MS, Judge, Verdict
from shared.messages import Context, Leg, Opportunity, RateUsed, Reason, Rejection
from shared.settings import DetectorSettings

Event = Opportunity | Rejection

TOP = 5
"""Levels of each book in a published leg."""

REASONS_MIN_NS = 1_000_000_000
"""A rejection whose reasons change is published again at most this often."""


def gap_id(base: str, buy: HeldBook, sell: HeldBook, opened_ns: int) -> str:
    """32 hex digits from the gap itself, so that every instance and every replay finds the same."""
    parts = [base, "direct", buy.exchange, buy.symbol, sell.exchange, sell.symbol, opened_ns]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:32]


class Pair:
    """Buying on one book and selling on another: what is open about it."""

    __slots__ = (
        "adopted",
        "buy",
        "gone_ns",
        "opportunity",
        "passing_ns",
        "published_ns",
        "rejection",
        "sell",
    )

    def __init__(self, buy: HeldBook, sell: HeldBook) -> None:
        self.buy = buy
        self.sell = sell
        self.opportunity: Opportunity | None = None
        self.rejection: Rejection | None = None
        self.passing_ns: int | None = None
        self.gone_ns: int | None = None
        self.published_ns = 0
        self.adopted = False

    def idle(self) -> bool:
        """Nothing is open and nothing pending: the pair can be forgotten."""
        return self.opportunity is None and self.rejection is None and self.passing_ns is None


class Lifecycle:
    """Turns a verdict on a pair into the messages that it causes."""

    def __init__(self, settings: DetectorSettings, judge: Judge) -> None:
        self._settings = settings
        self._judge = judge

    def step(self, pair: Pair, now_ns: int, event_ns: int, trades: Trades) -> list[Event]:
        """Judge the pair now. `event_ns` is the `received_ns` of the message that led here (or now)."""
        failed = self._leg_failed(pair, now_ns)
        verdict = None if failed else self._judge.verdict(pair.buy, pair.sell, now_ns)
        events: list[Event] = []
        if pair.opportunity is not None:
            why = failed or self._close_reason(verdict)
            if why is None:
                assert verdict is not None
                return self._update(pair, verdict, now_ns, trades)
            if pair.adopted:
                why = "handover"
            events.append(self._close(pair, verdict, why, now_ns, trades))
        if verdict is None or not verdict.crossing:
            return events + self._gone(pair, verdict, now_ns)
        pair.gone_ns = None
        reasons = verdict.reasons
        if not reasons:
            if pair.passing_ns is None:
                pair.passing_ns = event_ns
            if now_ns - pair.passing_ns >= self._settings.persistence_ms * MS:
                return events + self._open(pair, verdict, now_ns, trades)
            reasons = (Reason.PERSISTENCE,)
        else:
            pair.passing_ns = None
        return events + self._reject(pair, verdict, reasons, now_ns, event_ns)

    # ------------------------------------------------ opportunity

    def _leg_failed(self, pair: Pair, now_ns: int) -> str | None:
        for book in (pair.buy, pair.sell):
            if not self._judge.usable(book, now_ns):
                return Reason.HALTED.value if book.state == "halted" else Reason.HEALTH.value
        return None

    def _close_reason(self, verdict: Verdict | None) -> str | None:
        """Why an open opportunity ends; None if it goes on."""
        if verdict is None or not verdict.crossing:
            return "crossing_gone"
        gates = [reason for reason in verdict.reasons if reason is not Reason.THRESHOLD]
        if gates:
            edge_gone = {Reason.FEES, Reason.CONVERSION, Reason.NO_CROSSING}
            return "edge" if set(gates) <= edge_gone else gates[0].value
        net = verdict.evaluation.net_bps if verdict.evaluation is not None else None
        return "edge" if net is None or net < self._settings.close_net_bps else None

    def _open(self, pair: Pair, verdict: Verdict, now_ns: int, trades: Trades) -> list[Event]:
        assert pair.passing_ns is not None
        events = self._end_rejection(pair, "accepted", now_ns)
        opened_ns, pair.passing_ns = pair.passing_ns, None
        identity = gap_id(pair.buy.base, pair.buy, pair.sell, opened_ns)
        pair.opportunity = self._opportunity(pair, verdict, identity, "opened", opened_ns, ZERO, now_ns, trades)
        pair.published_ns = now_ns
        return [*events, pair.opportunity]

    def _update(self, pair: Pair, verdict: Verdict, now_ns: int, trades: Trades) -> list[Event]:
        held = pair.opportunity
        assert held is not None
        assert verdict.evaluation is not None
        assert verdict.evaluation.net_bps is not None
        waited_ns = now_ns - pair.published_ns
        moved = abs(verdict.evaluation.net_bps - held.net_bps) >= self._settings.update_bps
        due = waited_ns >= self._settings.update_max_ms * MS
        if not pair.adopted and not due and not (moved and waited_ns >= self._settings.update_min_ms * MS):
            return []
        pair.adopted = False
        pair.opportunity = self._opportunity(
            pair, verdict, held.opportunity_id, "updated", held.opened_ns, held.peak_net_bps, now_ns, trades
        )
        pair.published_ns = now_ns
        return [pair.opportunity]

    def _close(self, pair: Pair, verdict: Verdict | None, why: str, now_ns: int, trades: Trades) -> Opportunity:
        """The last numbers known, with the reason: the books may be gone."""
        held = pair.opportunity
        assert held is not None
        pair.opportunity, pair.adopted, pair.passing_ns = None, False, None
        evaluation = verdict.evaluation if verdict is not None else None
        change: dict[str, Any] = {"phase": "closed", "close_reason": why, "detected_ns": now_ns}
        if evaluation is not None and evaluation.net_bps is not None:
            change["net_bps"] = evaluation.net_bps
        return held.model_copy(update=change)

    def _opportunity(
        self,
        pair: Pair,
        verdict: Verdict,
        identity: str,
        phase: str,
        opened_ns: int,
        peak: Decimal,
        now_ns: int,
        trades: Trades,
    ) -> Opportunity:
        found = verdict.evaluation
        assert found is not None
        return Opportunity.model_construct(
            opportunity_id=identity,
            phase=phase,
            base=pair.buy.base,
            buy=self._leg(pair.buy, now_ns, found.buy_vwap, found.buy_limit, found.buy_levels),
            sell=self._leg(pair.sell, now_ns, found.sell_vwap, found.sell_limit, found.sell_levels),
            rates=_rates(verdict, now_ns),
            size=found.size,
            notional_usd=found.notional,
            profit_usd=found.profit,
            naive_bps=_bps(found.naive_bps),
            net_bps=_bps(found.net_bps),
            closed_loop_bps=_bps(found.closed_loop_bps),
            depth_limited=found.depth_limited,
            opened_ns=opened_ns,
            detected_ns=now_ns,
            expires_ns=now_ns + self._settings.expires_ms * MS,
            peak_net_bps=max(peak, _bps(found.net_bps)),
            close_reason=None,
            context=_context(pair, now_ns, trades),
        )

    # ------------------------------------------------ rejection

    def _reject(
        self, pair: Pair, verdict: Verdict, reasons: tuple[Reason, ...], now_ns: int, event_ns: int
    ) -> list[Event]:
        held = pair.rejection
        if held is not None:
            if tuple(held.reasons) == reasons or now_ns - pair.published_ns < REASONS_MIN_NS:
                return []
            phase, opened_ns, identity = "updated", held.opened_ns, held.rejection_id
        else:
            phase, opened_ns = "opened", event_ns
            identity = "r" + gap_id(pair.buy.base, pair.buy, pair.sell, opened_ns)[:31]
        found = verdict.evaluation
        net = None if found is None or found.net_bps is None else _bps(found.net_bps)
        best = [value for value in (net, held.best_net_bps if held is not None else None) if value is not None]
        loop = None if found is None or found.closed_loop_bps is None else _bps(found.closed_loop_bps)
        levels = (found.buy_levels, found.sell_levels) if found is not None else (0, 0)
        buy_at = (found.buy_vwap, found.buy_limit) if found is not None else (None, None)
        sell_at = (found.sell_vwap, found.sell_limit) if found is not None else (None, None)
        pair.rejection = Rejection.model_construct(
            rejection_id=identity,
            phase=phase,
            base=pair.buy.base,
            buy=self._leg(pair.buy, now_ns, *buy_at, levels[0]),
            sell=self._leg(pair.sell, now_ns, *sell_at, levels[1]),
            rates=_rates(verdict, now_ns),
            size=found.size if found is not None else ZERO,
            naive_bps=_bps(verdict.naive_bps),
            net_bps=net,
            closed_loop_bps=loop,
            reasons=list(reasons),
            opened_ns=opened_ns,
            detected_ns=now_ns,
            best_net_bps=max(best) if best else None,
            close_reason=None,
        )
        pair.published_ns = now_ns
        return [pair.rejection]

    def _gone(self, pair: Pair, verdict: Verdict | None, now_ns: int) -> list[Event]:
        """No crossing now: a rejection closes when that has lasted, so that flicker is not a flood."""
        pair.passing_ns = None
        if pair.rejection is None:
            return []
        if pair.gone_ns is None:
            pair.gone_ns = now_ns
        if verdict is None:
            return self._end_rejection(pair, Reason.HEALTH.value, now_ns)
        if now_ns - pair.gone_ns < self._settings.rejection_linger_ms * MS:
            return []
        return self._end_rejection(pair, "crossing_gone", now_ns)

    def _end_rejection(self, pair: Pair, why: str, now_ns: int) -> list[Event]:
        held, pair.rejection, pair.gone_ns = pair.rejection, None, None
        if held is None:
            return []
        return [held.model_copy(update={"phase": "closed", "close_reason": why, "detected_ns": now_ns})]

    # ------------------------------------------------ parts of messages

    def _leg(self, book: HeldBook, now_ns: int, vwap: Decimal | None, limit: Decimal | None, levels: int) -> Leg:
        fee = book.fee(now_ns)
        return Leg.model_construct(
            exchange=book.exchange,
            symbol=book.symbol,
            vwap=vwap,
            limit=limit,
            fee_bps=ZERO if fee is None else fee * 10_000,
            levels=levels,
            alive_age_ms=(now_ns - book.alive_ns) // MS,
            book_age_ms=(now_ns - book.received_ns) // MS,
            bids=[(price, size) for price, size in book.bids[:TOP]],
            asks=[(price, size) for price, size in book.asks[:TOP]],
        )


def _bps(value: Decimal | None) -> Decimal:
    """Basis points as published: four decimals say more than any book can keep."""
    return ZERO if value is None else round(value, 4)


def _rates(verdict: Verdict, now_ns: int) -> list[RateUsed]:
    return [
        RateUsed.model_construct(
            symbol=rate.symbol,
            exchange=rate.exchange,
            side=side,
            price=Decimal(repr(rate.ask if side == "ask" else rate.bid)),
            age_ms=(now_ns - rate.received_ns) // MS,
        )
        for rate, side in verdict.rates
    ]


def _context(pair: Pair, now_ns: int, trades: Trades) -> Context:
    count, share = trades.last_minute(now_ns)
    return Context.model_construct(
        volatility_bps_1m=pair.buy.volatility.bps_1m(now_ns) or pair.sell.volatility.bps_1m(now_ns),
        trades_1m=count,
        buy_share_1m=share,
        imbalance_buy=imbalance(pair.buy.bids, pair.buy.asks),
        imbalance_sell=imbalance(pair.sell.bids, pair.sell.asks),
    )
