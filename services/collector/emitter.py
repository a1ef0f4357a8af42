"""Feed outputs to Kafka messages. One counter per symbol numbers all messages about it."""

from collections import Counter
from collections.abc import Iterable

import structlog
from orjson import Fragment, dumps

from services.collector.book import Level
from services.collector.exchanges.base import Instrument
from services.collector.outputs import BookChanged, HealthChanged, Output, Traded
from shared import metrics, topics
from shared.kafka import Publisher
from shared.messages import NO_TERMS, book_value, health_value, rate_value, trade_value
from shared.symbols import base_of, is_rate

log = structlog.get_logger()


class _Line:
    """What is remembered of one symbol."""

    __slots__ = ("asks", "asks_json", "base", "bids", "bids_json", "quote", "rate", "sequence", "state")

    def __init__(self, symbol: str, sequence: int) -> None:
        self.base = base_of(symbol)
        self.rate = is_rate(symbol)
        self.sequence = sequence
        self.state: str | None = None
        self.quote: tuple[float, float] | None = None  # of a cash pair
        self.bids: list[Level] | None = None
        self.asks: list[Level] | None = None
        self.bids_json = self.asks_json = Fragment(b"[]")


class Emitter:
    """Publishes what the feeds of one exchange say.

    Args:
        exchange: Name under which it is published (a second source publishes under the first one's).
    """

    def __init__(self, exchange: str, publisher: Publisher, started_ns: int) -> None:
        self.exchange = exchange
        self._publisher = publisher
        self._topic = topics.ticks(exchange)
        self._started = started_ns // 1_000_000
        self._lines: dict[str, _Line] = {}
        self._terms: dict[str, dict[str, str | None]] = {}
        self._published = dict.fromkeys(("book", "trade", "health", "rate"), 0)

    def know(self, instruments: Iterable[Instrument]) -> None:
        """What the exchange says of orders, sent along with each proof of life: detectors floor sizes to it."""
        for one in instruments:
            stated = {"lot_step": one.lot_step, "min_size": one.min_size, "min_notional": one.min_notional}
            self._terms[one.symbol] = {
                name: None if value is None else format(value, "f") for name, value in stated.items()
            }

    def emit(self, outputs: list[Output]) -> None:
        """Publish those outputs that are messages."""
        for out in outputs:
            kind = type(out)
            if kind is BookChanged:
                self.book(out)  # type: ignore[arg-type]  # narrowed by `kind`: the hot path
            elif kind is Traded:
                self.trade(out)  # type: ignore[arg-type]
            elif kind is HealthChanged:
                self.health(out)  # type: ignore[arg-type]

    def book(self, out: BookChanged) -> None:
        symbol = out.symbol
        line = self._lines.get(symbol) or self._line(symbol)
        line.sequence += 1
        if line.rate:
            line.quote = (out.bids[0][0], out.asks[0][0])
            self._rate(symbol, line, out.received_ns, out.exchange_ns)
            return
        if out.bids is not line.bids:  # the same object while none of its levels has changed
            line.bids, line.bids_json = out.bids, Fragment(dumps(out.bids))
        if out.asks is not line.asks:
            line.asks, line.asks_json = out.asks, Fragment(dumps(out.asks))
        value = book_value(
            self.exchange, symbol, line.sequence, out.received_ns, out.exchange_ns, line.bids_json, line.asks_json
        )
        self._publisher.publish(self._topic, line.base, value)
        self._published["book"] += 1

    def trade(self, out: Traded) -> None:
        line = self._lines.get(out.symbol) or self._line(out.symbol)
        if line.rate:
            return
        line.sequence += 1
        trade = out.trade
        value = trade_value(
            self.exchange,
            out.symbol,
            line.sequence,
            out.received_ns,
            trade.exchange_ns,
            trade.price,
            trade.size,
            trade.taker_side,
            trade.trade_id,
        )
        self._publisher.publish(self._topic, line.base, value)
        self._published["trade"] += 1

    def health(self, out: HealthChanged) -> None:
        symbol = out.symbol
        line = self._lines.get(symbol) or self._line(symbol)
        line.sequence += 1
        if line.state != out.state:
            line.state = out.state
            metrics.BOOK_STATE.labels(exchange=self.exchange, symbol=symbol).set(out.state == "live")
            metrics.BOOK_CHANGES.labels(exchange=self.exchange, state=out.state).inc()
            log.info("book", exchange=self.exchange, symbol=symbol, state=out.state, reason=out.reason)
        if line.rate:
            self._rate(symbol, line, out.received_ns, None)
            return
        value = health_value(
            self.exchange,
            symbol,
            line.sequence,
            out.received_ns,
            out.state,
            out.reason,
            out.since_ns,
            out.alive_ns,
            self._terms.get(symbol, NO_TERMS),
        )
        self._publisher.publish(self._topic, line.base, value)
        self._published["health"] += 1

    def states(self) -> Counter[str]:
        """How many books are in each state. Any thread. A live rate is no live book, unless rates are all there is."""
        known = [*self._terms, *self._lines]
        only_rates = all(map(is_rate, known))
        return Counter(
            "live as rate" if line.rate and line.state == "live" and not only_rates else line.state
            for line in list(self._lines.values())
            if line.state is not None
        )

    def flush_metrics(self) -> None:
        """Counted in plain numbers on the hot path, handed over from time to time."""
        for kind, count in self._published.items():
            if count:
                metrics.TICKS.labels(exchange=self.exchange, kind=kind).inc(count)
                self._published[kind] = 0

    def _rate(self, symbol: str, line: _Line, received_ns: int, exchange_ns: int | None) -> None:
        state = line.state or "syncing"
        if line.quote is None and state == "live":
            return  # its first book follows at once
        bid, ask = line.quote or (0.0, 0.0)
        value = rate_value(self.exchange, symbol, line.sequence, received_ns, exchange_ns, bid, ask, state)
        self._publisher.publish(topics.FX_RATES, symbol, value)
        self._published["rate"] += 1

    def _line(self, symbol: str) -> _Line:
        line = self._lines[symbol] = _Line(symbol, self._started)
        return line
