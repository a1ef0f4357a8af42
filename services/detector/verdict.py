"""One verdict on one gap at one moment: every gate, in order. Pure.

What certainly does not pay is seen in floats; whatever may pay is walked in Decimal. The two agree, because the floats
only decide where they are clear by a million times their error.
"""

from decimal import Decimal
from typing import Literal, NamedTuple

from services.detector import cycle, edge
from services.detector.books import Fx, HeldBook, Key, Rates, exact, fee_on, pair_crosses
from services.detector.edge import BPS, ONE, BridgeFill, Caps, Evaluation, Side
from services.detector.gap import Gap
from services.detector.plain import CLEAR, DAY_NS, NEVER_NS, NO_ASK, NO_BID, Gates
from shared.messages import Limit, RateTick, Reason
from shared.settings import DetectorSettings, Settings

MS = 1_000_000

REASONS_MIN_NS = 1_000_000_000
"""A rejection whose reasons change is published again at most this often."""


class Verdict(NamedTuple):
    """What a gap is now.

    Attributes:
        crossing: Whether the bid is above the ask, as they stand or converted: else there is nothing to judge.
        reasons: Why it is no opportunity; empty if it is one at `open_net_bps`.
        net_bps: Net edge (bps): of the tops, in floats, where those settled it; None where a leg, rate or fee fails.
    """

    crossing: bool
    reasons: tuple[Reason, ...]
    net_bps: Decimal | None = None


NO_CROSSING = Verdict(False, ())


class Judge:
    """Applies the gates of the settings."""

    def __init__(self, settings: Settings, rates: Rates) -> None:
        self._settings: DetectorSettings = settings.detector
        self._exchanges = settings.exchanges
        self._rates = rates
        self._max_silence_ns = self._settings.max_silence_ms * MS
        self._max_age_ns = self._settings.max_book_age_ms * MS
        self._max_skew_ns = self._settings.max_skew_ms * MS
        self._not_the_same = frozenset(self._settings.not_the_same)
        self._most_net = float(self._settings.sanity_cap_bps) / 10_000 - CLEAR
        self._conversion_fees: dict[Key, tuple[int, Decimal | None]] = {}  # of a day
        share = self._settings.max_depth_share
        self._share = share if share < 1 else None

    @property
    def gates(self) -> Gates:
        """What quiet ticks must know of the settings."""
        return Gates(
            self._max_silence_ns,
            self._max_age_ns,
            self._max_skew_ns,
            self._settings.update_min_ms * MS,
            self._settings.update_max_ms * MS,
            REASONS_MIN_NS,
            self._most_net,
        )

    def usable(self, book: HeldBook, now_ns: int) -> bool:
        return book.usable(now_ns, self._max_silence_ns)

    def crosses(self, gap: Gap) -> bool:
        """Gross crossing: the bid is above the ask, as they stand or both converted to USD. No fees."""
        if gap.bridge is not None:
            return self._crossings(gap) != (False, False)
        return pair_crosses(gap.buy, gap.sell)

    def failed(self, gap: Gap, now_ns: int) -> tuple[Reason, ...]:
        """Reasons of legs that are not live."""
        reasons = [
            Reason.HALTED if book.state == "halted" else Reason.HEALTH
            for book in gap.books
            if not book.usable(now_ns, self._max_silence_ns)
        ]
        return tuple(dict.fromkeys(reasons))

    def is_empty(self, gap: Gap) -> bool:
        """Whether a side that it needs has no level."""
        return not (gap.sell.best_bid > NO_BID and gap.buy.best_ask < NO_ASK and NO_BID < self._through(gap) < NO_ASK)

    def fails_ns(self, gap: Gap, now_ns: int) -> int:
        """The next moment at which silence alone makes a leg stale or its book too old."""
        moments = [book.alive_ns + self._max_silence_ns for book in gap.books]
        moments += [book.received_ns + self._max_age_ns for book in gap.books]
        return min((moment for moment in moments if moment >= now_ns), default=NEVER_NS - 1) + 1

    def verdict(self, gap: Gap, now_ns: int) -> Verdict:
        """All gates for one gap."""
        as_they_stand, converted = self._crossings(gap)
        if not as_they_stand and not converted:
            return NO_CROSSING
        failed = self.failed(gap, now_ns)
        if failed:
            return Verdict(True, failed)
        reasons = self._gates_of_time(gap, now_ns)
        if self._not_the_same and not self._not_the_same.isdisjoint(f"{b.exchange}:{b.base}" for b in gap.books):
            reasons.append(Reason.IDENTITY)
        missing = self.missing(gap, now_ns)
        if missing:
            return Verdict(True, (*reasons, *missing))
        net = self._net(gap)
        if net < -CLEAR:
            eaten = self._eaten(gap, converted)
            if eaten is not None:
                return Verdict(True, (*reasons, *eaten), edge.rounded_bps(Decimal(net * 10_000)))
        found = self._walked(gap, now_ns)
        reasons.extend(found.reasons)
        if not found.reasons and found.net_bps is not None:
            if found.net_bps > self._settings.sanity_cap_bps:
                reasons.append(Reason.SANITY)
            elif found.net_bps < self._settings.open_net_bps:
                reasons.append(Reason.THRESHOLD)
        return Verdict(True, tuple(reasons), found.net_bps)

    def clearly_pays(self, gap: Gap, now_ns: int) -> bool:
        """Whether floats say without doubt that the tops pay, no gate of time fails, and it is not too good."""
        if self.failed(gap, now_ns) or self.missing(gap, now_ns) or self._gates_of_time(gap, now_ns):
            return False
        return CLEAR < self._net(gap) < self._most_net

    def numbers(self, gap: Gap, now_ns: int) -> Evaluation | None:
        """The exact walk, made again only when something that it rests on has changed. None without rate or fee."""
        return None if self.missing(gap, now_ns) else self._walked(gap, now_ns)

    def _walked(self, gap: Gap, now_ns: int) -> Evaluation:
        """With rates and fees that are known."""
        if self.is_empty(gap):
            return edge.nothing((Reason.DEPTH,), None, None, None)
        sources = tuple(rate.exchange for rate, _ in self.rates(gap))
        basis = (*((book.version, book.fee_day) for book in gap.books), *self._cash(gap), sources)
        if gap.walk is None or gap.walk_basis != basis:
            gap.walk = self._direct(gap, now_ns) if gap.bridge is None else self._cycle(gap, gap.bridge, now_ns)
            gap.walk_basis = basis
        return gap.walk

    def rates(self, gap: Gap) -> list[tuple[RateTick, str]]:
        """Conversions used: (rate, side); none for USD."""
        spent, received = self._quotes(gap)
        return [(fx.rate, side) for fx, side in ((spent, "ask"), (received, "bid")) if fx.rate is not None]

    def naive_bps(self, gap: Gap) -> Decimal | None:
        """Gap of the tops without conversion and fees; None where a side is empty."""
        if self.is_empty(gap):
            return None
        ask, bid = Decimal(repr(gap.buy.best_ask)), Decimal(repr(gap.sell.best_bid))
        if gap.bridge is not None:
            price = Decimal(repr(self._through(gap)))
            ask, bid = (ask * price, bid) if gap.bridge_side == "buy" else (ask, bid * price)
        return edge.ratio_bps(bid, ask)

    # ------------------------------------------------ in floats

    @staticmethod
    def _through(gap: Gap) -> float:
        """Price at the top of the bridge's book, on the side that is used; 1 for a direct gap."""
        if gap.bridge is None:
            return 1.0
        return gap.bridge.best_ask if gap.bridge_side == "buy" else gap.bridge.best_bid

    def _quotes(self, gap: Gap) -> tuple[Fx, Fx]:
        """Conversions of what is spent in the end and of what is received."""
        spent, received = gap.buy.fx, gap.sell.fx
        if gap.bridge is not None:
            if gap.bridge_side == "buy":
                spent = gap.bridge.fx
            else:
                received = gap.bridge.fx
        return spent, received

    def _cash(self, gap: Gap) -> tuple[float, float]:
        spent, received = self._quotes(gap)
        return spent.ask, received.bid

    def _prices(self, gap: Gap) -> tuple[float, float]:
        """Ask and bid of the coin in cash, by way of the bridge if there is one."""
        ask, bid = gap.buy.best_ask, gap.sell.best_bid
        if gap.bridge is not None:
            if gap.bridge_side == "buy":
                ask *= gap.bridge.best_ask
            else:
                bid *= gap.bridge.best_bid
        return ask, bid

    def _crossings(self, gap: Gap) -> tuple[bool, bool]:
        """As the prices stand, and converted to USD."""
        ask, bid = self._prices(gap)
        spent, received = self._quotes(gap)
        return bid > ask, bid * received.bid > ask * spent.ask

    def _factors(self, gap: Gap) -> tuple[float, float]:
        """Fees: cost of buying one, proceeds of selling one."""
        cost, gain = gap.buy.buy_factor, gap.sell.sell_factor
        if gap.bridge is not None:
            if gap.bridge_side == "buy":
                cost *= gap.bridge.buy_factor
            else:
                gain *= gap.bridge.sell_factor
        return cost, gain

    def _net(self, gap: Gap) -> float:
        """Net edge of the tops as a fraction."""
        ask, bid = self._prices(gap)
        cost, gain = self._factors(gap)
        obtain, give = self._cash(gap)
        return bid * give * gain / (ask * obtain * cost) - 1

    def _eaten(self, gap: Gap, converted: bool) -> tuple[Reason, ...] | None:
        """What eats a crossing that does not pay; None where floats are too near to a tie to say."""
        ask, bid = self._prices(gap)
        cost, gain = self._factors(gap)
        obtain, give = self._cash(gap)
        fees, conversion = bid * gain / (ask * cost) - 1, bid * give / (ask * obtain) - 1
        if abs(fees) < CLEAR or abs(conversion) < CLEAR:
            return None
        reasons = []
        if fees < 0:
            reasons.append(Reason.FEES)
        if not converted:
            reasons.append(Reason.CONVERSION)
        return tuple(reasons) or (Reason.FEES, Reason.CONVERSION)

    # ------------------------------------------------ gates

    def _gates_of_time(self, gap: Gap, now_ns: int) -> list[Reason]:
        books = gap.books
        reasons = []
        if now_ns - min(book.received_ns for book in books) > self._max_age_ns:
            reasons.append(Reason.AGE)
        alive = [book.alive_ns for book in books]
        if max(alive) - min(alive) > self._max_skew_ns:
            reasons.append(Reason.SKEW)
        return reasons

    def missing(self, gap: Gap, now_ns: int) -> tuple[Reason, ...]:
        """Fees and rates that nobody knows: a fee of None is no fee of zero."""
        missing = [Reason.FEES for book in gap.books if book.fee(now_ns) is None]
        for fx in self._quotes(gap):
            if now_ns > fx.good_until_ns:  # silence may have made it too old since it was looked for
                missing.append(Reason.RATE_STALE if fx.known else Reason.RATE_MISSING)
        return tuple(dict.fromkeys(missing))

    # ------------------------------------------------ exact

    def _side(self, book: HeldBook, rate: Decimal, now_ns: int) -> Side:
        lot_step, min_size, min_notional = book.order_terms(rate)
        fee = book.fee(now_ns)
        assert fee is not None
        return Side(fee, rate, lot_step, min_notional, book.fee_in_base, min_size)

    def _balance(self, book: HeldBook, asset: str) -> Decimal | None:
        """What there is of an asset; None: no balances are set, so nothing is limited by them."""
        balances = book.settings.balances
        return None if balances is None else balances.get(asset, Decimal(0))

    def _direct(self, gap: Gap, now_ns: int) -> Evaluation:
        buy, sell = gap.buy, gap.sell
        if self._net(gap) > -CLEAR:
            asks, bids = buy.exact_asks(), sell.exact_bids()
        else:  # where the tops do not pay, nothing below them counts
            asks, bids = exact(buy.asks[:1]), exact(sell.bids[:1])
        caps = Caps(
            self._settings.max_notional_usd, self._balance(buy, buy.quote), self._balance(sell, sell.base), self._share
        )
        return edge.evaluate(
            asks,
            bids,
            self._side(buy, Decimal(repr(buy.fx.ask)), now_ns),
            self._side(sell, Decimal(repr(sell.fx.bid)), now_ns),
            caps,
            self._closed_loop(gap, now_ns),
        )

    def _closed_loop(self, gap: Gap, now_ns: int) -> Decimal | None:
        """Units of the spent currency per unit received, with the taker fees of the conversions."""
        spent, received = self._quotes(gap)
        if spent.quote == received.quote:
            return ONE
        factor = ONE
        for rate, side in self.rates(gap):
            fee = self._conversion_fee(rate, now_ns)
            if fee is None:
                return None
            price = Decimal(repr(rate.ask if side == "ask" else rate.bid))
            factor = edge.EXACT.divide(factor * (1 - fee), price) if side == "ask" else factor * price * (1 - fee)
        return factor

    def _conversion_fee(self, rate: RateTick, now_ns: int) -> Decimal | None:
        settings = self._exchanges.get(rate.exchange)
        if settings is None:
            return None
        key, day = (rate.exchange, rate.symbol), now_ns // DAY_NS
        known = self._conversion_fees.get(key)
        if known is None or known[0] != day:
            fee = fee_on(settings, rate.symbol, now_ns)
            known = self._conversion_fees[key] = (day, None if fee is None else fee.taker_bps / 10_000)
        return known[1]

    def _cycle(self, gap: Gap, bridge: HeldBook, now_ns: int) -> Evaluation:
        """Three orders, each spending what the one before it brought; the coin's two as the legs of an evaluation."""
        first = gap.bridge_side == "buy"
        through = Decimal(repr(self._through(gap)))
        spend, receive = (Decimal(repr(rate)) for rate in self._cash(gap))
        cash = spend if first else receive
        coin_buy = self._order("buy", gap.buy, through * cash if first else spend, now_ns)
        coin_sell = self._order("sell", gap.sell, receive if first else through * cash, now_ns)
        turn = self._order(gap.bridge_side, bridge, cash, now_ns)
        orders = (turn, coin_buy, coin_sell) if first else (coin_buy, coin_sell, turn)
        spending = bridge if first else gap.buy
        found = cycle.evaluate_cycle(orders, spend, receive, self._most_usd(spending, spend, orders[0]))
        loop = self._closed_loop(gap, now_ns)
        closed = None
        if loop is not None and found.net_bps is not None:
            ratio = edge.QUOTIENT.divide((found.net_bps + BPS) * spend, receive)
            closed = ratio * loop - BPS
        vwaps, limits = found.vwaps or (None, None, None), found.limits or (None, None, None)
        at, buying, selling = (0, 1, 2) if first else (2, 0, 1)
        limit: Limit | None = found.limited_by
        if limit == "share" and self._share is None:
            limit = "balance"
        return Evaluation(
            found.reasons,
            found.sizes[buying],
            found.sizes[selling],
            found.profit,
            found.notional,
            found.naive_bps,
            found.net_bps,
            closed,
            vwaps[buying],
            vwaps[selling],
            limits[buying],
            limits[selling],
            found.levels_used[buying],
            found.levels_used[selling],
            limit,
            BridgeFill(found.sizes[at], vwaps[at], limits[at], found.levels_used[at]),
        )

    def _order(self, side: Literal["buy", "sell"], book: HeldBook, usd: Decimal, now_ns: int) -> cycle.Order:
        """Terms of one order of a cycle. `usd`: USD per unit of its quote currency."""
        fee = book.fee(now_ns)
        assert fee is not None
        lot_step, min_size, least_usd = book.order_terms(usd)
        levels = book.exact_asks() if side == "buy" else book.exact_bids()
        most = [] if self._share is None else [self._share * sum((size for _, size in levels), Decimal(0))]
        balance = self._balance(book, book.base) if side == "sell" else None
        if balance is not None:
            most.append(balance)
        return cycle.Order(
            side,
            levels,
            fee,
            side == "buy" and book.fee_in_base,
            lot_step,
            min_size,
            None if least_usd is None else edge.QUOTIENT.divide(least_usd, usd),
            min(most, default=None),
        )

    def _most_usd(self, book: HeldBook, rate: Decimal, order: cycle.Order) -> Decimal:
        """The first order's largest value in USD, without fee: the notional cap, or the balance it is paid from."""
        balance = self._balance(book, book.quote)
        most = self._settings.max_notional_usd
        if balance is None:
            return most
        return min(most, edge.QUOTIENT.divide(balance * rate, 1 if order.fee_in_base else 1 + order.fee))
