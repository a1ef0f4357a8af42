"""From verdicts to messages: one rejection or one opportunity open at a time for each crossing. Pure.

A gap that passes every gate is first a rejection with reason `persistence`; when it has passed for `persistence_ms` the
rejection closes (`accepted`) and the opportunity opens, with the moment it first passed as `opened_ns`. It closes when
its net edge has been below `close_net_bps`, which is lower than `open_net_bps`, for `close_after_ms` (what comes back
within that is the same opportunity, and meanwhile says so), or at once when a gate fails.
"""

from decimal import Decimal
from typing import Any

from services.detector.books import HeldBook
from services.detector.context import Trades, depth_usd, imbalance, volatility_bps
from services.detector.edge import ZERO, BridgeFill, Evaluation, rounded_bps
from services.detector.gap import Gap
from services.detector.plain import NEVER_NS, NOTHING_SEEN
from services.detector.verdict import MS, REASONS_MIN_NS, Judge, Verdict
from shared.messages import Context, Leg, Opportunity, Phase, RateUsed, Reason, Rejection, RouteLeg
from shared.settings import DetectorSettings

Event = Opportunity | Rejection

TOP = 5
"""Levels of each book in a published leg."""

EATEN = {(Reason.FEES,): 1, (Reason.CONVERSION,): 2, (Reason.FEES, Reason.CONVERSION): 3}
"""Rejections that a tick may confirm in floats (`GapTop.eaten`)."""

EDGE_GONE = frozenset({Reason.FEES, Reason.CONVERSION, Reason.NO_CROSSING, Reason.THRESHOLD})
"""Reasons that say the same of an open opportunity: the edge is small or gone."""


class Lifecycle:
    """Turns a verdict on a gap into the messages that it causes."""

    def __init__(self, settings: DetectorSettings, judge: Judge) -> None:
        self._settings = settings
        self._judge = judge
        self._persistence_ns = settings.persistence_ms * MS
        self._close_after_ns = settings.close_after_ms * MS
        self._linger_ns = settings.rejection_linger_ms * MS
        self._update_min_ns = settings.update_min_ms * MS
        self._update_max_ns = settings.update_max_ms * MS

    def step(self, gap: Gap, now_ns: int, event_ns: int | None, trades: Trades) -> list[Event]:
        """Judge the gap now.

        Args:
            event_ns: `received_ns` of the message that led here; None where time did, or a rate: then the newest
                message that bears on the gap is what an opening is dated by.
        """
        if gap.opportunity is not None and self._rests(gap, now_ns):
            return []
        verdict = self._judge.verdict(gap, now_ns)
        if gap.opportunity is not None:
            self._integrate(gap, now_ns)
            why = self._close_reason(gap, verdict, now_ns)
            if why is None:
                gap.failing_ns, gap.told = None, False
                return self._update(gap, now_ns, trades)
            if not gap.adopted and why in ("edge", "crossing_gone") and not self._is_over(gap, now_ns):
                return self._update(gap, now_ns, trades)
            closed = self._close(gap, "handover" if gap.adopted else why, now_ns)
            return [closed, *self._rejected(gap, verdict, now_ns, event_ns, trades)]
        return self._rejected(gap, verdict, now_ns, event_ns, trades)

    def due_ns(self, gap: Gap, now_ns: int) -> int:
        """When time alone may change something, if no message comes before."""
        due = self._judge.fails_ns(gap, now_ns)
        if gap.opportunity is not None:
            due = min(due, gap.published_ns + self._update_max_ns)
            if gap.failing_ns is not None:
                due = min(due, gap.failing_ns + self._close_after_ns)
                if not gap.told:
                    due = min(due, gap.published_ns + self._update_min_ns)
            return min(due, gap.recheck_ns)
        if gap.gone_ns is not None:
            return gap.gone_ns + self._linger_ns
        if gap.passing_ns is not None:
            due = min(due, gap.passing_ns + self._persistence_ns)
        return min(due, gap.recheck_ns)

    def _rests(self, gap: Gap, now_ns: int) -> bool:
        """Whether an open opportunity needs no exact look: nothing could be published yet, and it clearly still pays.

        Its exact numbers follow when the next update may come (`update_min_ms`).
        """
        gap.recheck_ns = NEVER_NS
        may_ns = gap.published_ns + self._update_min_ns
        if gap.adopted or gap.failing_ns is not None or now_ns >= may_ns or not self._judge.clearly_pays(gap, now_ns):
            return False
        gap.recheck_ns = may_ns
        return True

    def _rejected(self, gap: Gap, verdict: Verdict, now_ns: int, event_ns: int | None, trades: Trades) -> list[Event]:
        """Nothing is open but perhaps a rejection."""
        refused_ns = gap.refused_ns
        if not verdict.crossing or verdict.reasons:
            gap.refused_ns = now_ns
        if not verdict.crossing:
            return self._gone(gap, now_ns)
        gap.gone_ns = None
        if event_ns is None:
            event_ns = gap.newest_ns()
            if not verdict.reasons and event_ns <= refused_ns:
                event_ns = now_ns  # since that message it was refused: time has brought it, another rate in use
        reasons = verdict.reasons
        if reasons:
            gap.passing_ns = None
        else:
            if gap.passing_ns is None:
                gap.passing_ns = self._dated(gap, "opportunity", event_ns, now_ns)
            if now_ns - gap.passing_ns >= self._persistence_ns:
                return self._open(gap, now_ns, trades)
            reasons = (Reason.PERSISTENCE,)
        return self._reject(gap, verdict, reasons, now_ns, event_ns)

    @staticmethod
    def _dated(gap: Gap, what: str, event_ns: int, now_ns: int) -> int:
        """When it began; what time alone has brought again, with no message since, begins now."""
        began = event_ns if event_ns > gap.dated_ns[what] else now_ns
        gap.dated_ns[what] = began
        return began

    # ------------------------------------------------ opportunity

    def _close_reason(self, gap: Gap, verdict: Verdict, now_ns: int) -> str | None:
        """Why an open opportunity ends; None if it goes on."""
        if not verdict.crossing:
            gates = self._judge.failed(gap, now_ns) or self._judge.missing(gap, now_ns)
            if not gates and self._judge.is_empty(gap):
                gates = (Reason.DEPTH,)
            return gates[0].value if gates else "crossing_gone"
        failing = [reason for reason in verdict.reasons if reason not in EDGE_GONE]
        if failing:
            return failing[0].value
        if verdict.net_bps is None:
            return verdict.reasons[0].value  # no fee is known for today
        return "edge" if verdict.net_bps < self._settings.close_net_bps else None

    def _is_over(self, gap: Gap, now_ns: int) -> bool:
        if gap.failing_ns is None:
            gap.failing_ns = now_ns
        return now_ns - gap.failing_ns >= self._close_after_ns

    @staticmethod
    def _integrate(gap: Gap, now_ns: int) -> None:
        """Add the time since the last look, at the edge that was seen then."""
        held = gap.opportunity
        if held is not None and held.net_bps > 0:
            gap.integral += held.net_bps * (now_ns - gap.looked_ns) / 1_000_000_000
        gap.looked_ns = now_ns

    def _open(self, gap: Gap, now_ns: int, trades: Trades) -> list[Event]:
        assert gap.passing_ns is not None
        events = self._end_rejection(gap, "accepted", now_ns)
        opened_ns, gap.passing_ns, gap.accepted = gap.passing_ns, None, True
        gap.published_ns, gap.looked_ns, gap.failing_ns = now_ns, now_ns, None
        found = self._judge.numbers(gap, now_ns)
        assert found is not None
        assert found.net_bps is not None
        gap.integral = rounded_bps(found.net_bps) * (now_ns - opened_ns) / 1_000_000_000
        gap.opportunity = self._opportunity(
            gap, found, gap.identity(opened_ns), "opened", opened_ns, ZERO, now_ns, trades
        )
        return [*events, gap.opportunity]

    def _update(self, gap: Gap, now_ns: int, trades: Trades) -> list[Event]:
        """Publish again what has moved or is due, and as soon as may be that the edge is gone: it may be acted on."""
        held, found = gap.opportunity, self._judge.numbers(gap, now_ns)
        assert held is not None
        if found is None or found.net_bps is None:
            return []
        net = rounded_bps(found.net_bps)
        waited_ns = now_ns - gap.published_ns
        news = abs(net - held.net_bps) >= self._settings.update_bps or (gap.failing_ns is not None and not gap.told)
        may = news and waited_ns >= self._update_min_ns
        if not (gap.adopted or may or waited_ns >= self._update_max_ns):
            return []
        gap.adopted, gap.told = False, gap.failing_ns is not None
        gap.opportunity = self._opportunity(
            gap, found, held.opportunity_id, "updated", held.opened_ns, held.peak_net_bps, now_ns, trades
        )
        gap.published_ns = now_ns
        return [gap.opportunity]

    def _close(self, gap: Gap, why: str, now_ns: int) -> Opportunity:
        """The numbers of the last look, with the reason and the net edge of now: the books may be gone."""
        held = gap.opportunity
        assert held is not None
        ended_ns = now_ns if gap.failing_ns is None else gap.failing_ns
        change: dict[str, Any] = {
            "phase": "closed",
            "close_reason": why,
            "detected_ns": now_ns,
            "integral_bps_s": rounded_bps(gap.integral),
            "lifetime_ms": max(0, ended_ns - held.opened_ns) // MS,
        }
        found = None if self._judge.failed(gap, now_ns) else self._judge.numbers(gap, now_ns)
        if found is not None and found.net_bps is not None:
            change["net_bps"] = rounded_bps(found.net_bps)
        gap.opportunity, gap.adopted, gap.told, gap.passing_ns, gap.failing_ns = None, False, False, None, None
        return held.changed(**change)

    def _opportunity(
        self,
        gap: Gap,
        found: Evaluation,
        identity: str,
        phase: Phase,
        opened_ns: int,
        peak: Decimal,
        now_ns: int,
        trades: Trades,
    ) -> Opportunity:
        assert found.net_bps is not None
        assert found.naive_bps is not None
        net = rounded_bps(found.net_bps)
        return Opportunity.trusted(
            opportunity_id=identity,
            phase=phase,
            base=gap.buy.base,
            route=gap.route,
            buy=_leg(gap.buy, now_ns, found.buy_vwap, found.buy_limit, found.buy_levels),
            sell=_leg(gap.sell, now_ns, found.sell_vwap, found.sell_limit, found.sell_levels),
            rates=self._rates(gap, now_ns),
            size=found.size,
            notional_usd=found.notional,
            profit_usd=found.profit,
            naive_bps=rounded_bps(found.naive_bps),
            net_bps=net,
            closed_loop_bps=known_bps(found.closed_loop_bps),
            depth_limited=found.depth_limited,
            opened_ns=opened_ns,
            detected_ns=now_ns,
            expires_ns=now_ns + self._settings.expires_ms * MS,
            peak_net_bps=max(peak, net),
            close_reason=None,
            context=_context(gap, now_ns, trades),
            legs=_legs(gap, found, now_ns),
            sell_size=None if found.sell_size == found.size else found.sell_size,
            limited_by=found.limited_by,
            integral_bps_s=rounded_bps(gap.integral),
            lifetime_ms=None,
        )

    # ------------------------------------------------ rejection

    def _reject(
        self, gap: Gap, verdict: Verdict, reasons: tuple[Reason, ...], now_ns: int, event_ns: int
    ) -> list[Event]:
        held = gap.rejection
        if held is None:
            gap.best, gap.best_seen_bps = None, NOTHING_SEEN
        best = gap.best_bps()
        if verdict.net_bps is not None and (best is None or verdict.net_bps > best):
            gap.best = rounded_bps(verdict.net_bps)
        gap.recheck_ns = NEVER_NS
        if held is not None:
            if tuple(held.reasons) == reasons:
                return []
            if now_ns - gap.published_ns < REASONS_MIN_NS:
                gap.recheck_ns = gap.published_ns + REASONS_MIN_NS
                return []
        phase: Phase
        if held is not None:
            phase, opened_ns, identity = "updated", held.opened_ns, held.rejection_id
        else:
            phase, opened_ns = "opened", self._dated(gap, "rejection", event_ns, now_ns)
            identity = "r" + gap.identity(opened_ns)[:31]
        found = None if verdict.net_bps is None else self._judge.numbers(gap, now_ns)
        gap.rejection = Rejection.trusted(
            rejection_id=identity,
            phase=phase,
            base=gap.buy.base,
            route=gap.route,
            buy=_leg(gap.buy, now_ns, *_buying(found)),
            sell=_leg(gap.sell, now_ns, *_selling(found)),
            rates=self._rates(gap, now_ns),
            size=ZERO if found is None else found.size,
            naive_bps=known_bps(self._judge.naive_bps(gap) if found is None else found.naive_bps),
            net_bps=None if found is None else known_bps(found.net_bps),
            closed_loop_bps=None if found is None else known_bps(found.closed_loop_bps),
            reasons=list(reasons),
            opened_ns=opened_ns,
            detected_ns=now_ns,
            best_net_bps=gap.best,
            close_reason=None,
            legs=_legs(gap, found, now_ns),
            sell_size=None if found is None or found.sell_size == found.size else found.sell_size,
            limited_by=None if found is None else found.limited_by,
        )
        gap.published_ns, gap.eaten = now_ns, EATEN.get(reasons, 0)
        return [gap.rejection]

    def _gone(self, gap: Gap, now_ns: int) -> list[Event]:
        """No crossing now: a rejection closes when that has lasted, so that flicker is not a flood."""
        gap.passing_ns = None
        if gap.rejection is None:
            return []
        if gap.gone_ns is None:
            gap.gone_ns = now_ns
        return self._end_rejection(gap, "crossing_gone", now_ns) if now_ns - gap.gone_ns >= self._linger_ns else []

    def _end_rejection(self, gap: Gap, why: str, now_ns: int) -> list[Event]:
        held, gap.rejection, gap.gone_ns, gap.eaten = gap.rejection, None, None, 0
        if held is None:
            return []
        return [held.changed(phase="closed", close_reason=why, detected_ns=now_ns, best_net_bps=gap.best_bps())]

    def _rates(self, gap: Gap, now_ns: int) -> list[RateUsed]:
        return [
            RateUsed.trusted(
                symbol=rate.symbol,
                exchange=rate.exchange,
                side=side,
                price=Decimal(repr(rate.ask if side == "ask" else rate.bid)),
                age_ms=(now_ns - rate.received_ns) // MS,
            )
            for rate, side in self._judge.rates(gap)
        ]


# ---------------------------------------------------------------- parts of messages


def _buying(found: Evaluation | None) -> tuple[Decimal | None, Decimal | None, int]:
    return (None, None, 0) if found is None else (found.buy_vwap, found.buy_limit, found.buy_levels)


def _selling(found: Evaluation | None) -> tuple[Decimal | None, Decimal | None, int]:
    return (None, None, 0) if found is None else (found.sell_vwap, found.sell_limit, found.sell_levels)


def _leg(book: HeldBook, now_ns: int, vwap: Decimal | None, limit: Decimal | None, levels: int) -> Leg:
    return Leg.trusted(**_leg_fields(book, now_ns, vwap, limit, levels))


def _leg_fields(
    book: HeldBook, now_ns: int, vwap: Decimal | None, limit: Decimal | None, levels: int
) -> dict[str, Any]:
    fee = book.fee(now_ns)
    return {
        "exchange": book.exchange,
        "symbol": book.symbol,
        "vwap": vwap,
        "limit": limit,
        "fee_bps": None if fee is None else fee * 10_000,
        "levels": levels,
        "alive_age_ms": (now_ns - book.alive_ns) // MS,
        "book_age_ms": (now_ns - book.received_ns) // MS,
        "bids": book.bids[:TOP],
        "asks": book.asks[:TOP],
        "fee_in_base": book.fee_in_base,
    }


def _legs(gap: Gap, found: Evaluation | None, now_ns: int) -> list[RouteLeg] | None:
    """All three orders in the order of the cycle; None for a direct gap."""
    if gap.bridge is None:
        return None
    turn = found.bridge if found is not None and found.bridge is not None else BridgeFill(ZERO, None, None, 0)
    sizes = (ZERO, ZERO) if found is None else (found.size, found.sell_size)
    rows = [(gap.buy, "buy", sizes[0], *_buying(found)), (gap.sell, "sell", sizes[1], *_selling(found))]
    rows.insert(
        0 if gap.bridge_side == "buy" else 2,
        (gap.bridge, gap.bridge_side, turn.size, turn.vwap, turn.limit, turn.levels),
    )
    return [
        RouteLeg.trusted(side=side, size=size, **_leg_fields(book, now_ns, vwap, limit, levels))
        for book, side, size, vwap, limit, levels in rows
    ]


def known_bps(value: Decimal | None) -> Decimal | None:
    """As `rounded_bps`; what is not known stays so."""
    return None if value is None else rounded_bps(value)


def _context(gap: Gap, now_ns: int, trades: Trades) -> Context:
    count, share = trades.last_minute(now_ns)
    spent, received = _usd(gap)
    return Context.trusted(
        volatility_bps_1m=volatility_bps(gap.buy.mids, now_ns) or volatility_bps(gap.sell.mids, now_ns),
        trades_1m=count,
        buy_share_1m=share,
        imbalance_buy=imbalance(gap.buy.bids, gap.buy.asks),
        imbalance_sell=imbalance(gap.sell.bids, gap.sell.asks),
        ask_depth_usd=depth_usd(gap.buy.asks, spent),
        bid_depth_usd=depth_usd(gap.sell.bids, received),
    )


def _usd(gap: Gap) -> tuple[float, float]:
    """USD per unit of what the purchase spends and of what the sale brings; by way of the cycle's own bridge."""
    spent, received, bridge = gap.buy.fx.ask, gap.sell.fx.bid, gap.bridge
    if bridge is not None:
        if gap.bridge_side == "buy":
            spent = bridge.best_ask * bridge.fx.ask
        else:
            received = bridge.best_bid * bridge.fx.bid
    return spent, received
