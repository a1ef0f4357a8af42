"""`arb watch`: topics as lines, for people or as JSON."""

import asyncio
import datetime
import time

from rich.console import Console

from services.cli.screen import role_words, score
from shared import cluster, kafka, topics
from shared.errors import UndecodableRecord
from shared.kafka import ConsumerThread
from shared.messages import (
    AnyMessage,
    Audit,
    BookTick,
    Decision,
    DelayedEdge,
    Health,
    Leg,
    Opportunity,
    Rejection,
    Shadow,
    decode,
    levels,
    read_tick,
)
from shared.settings import KafkaSettings

TOPICS = {
    "opportunities": [topics.OPPORTUNITIES],
    "rejections": [topics.REJECTIONS],
    "decisions": [topics.DECISIONS],
    "outcomes": [topics.OUTCOMES],
    "audit": [topics.AUDIT],
    "health": topics.tick_topics(),
    "ticks": [*topics.tick_topics(), topics.FX_RATES],
}
"""No dead-letter topic is among them (`arb dlq` reads those): a value that cannot be read is always a fault here."""

NAMED = 5
"""So many of the records that are left out are named one by one: a stranger may write thousands."""

MOST_WORDS = 300
"""Characters of a reason: it may quote the record."""

stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


async def follow(
    settings: KafkaSettings,
    what: list[str],
    since_s: float | None,
    seconds: float | None,
    as_json: bool,
    console: Console,
) -> None:
    """Print what comes, one line a message, until cancelled or for `seconds`.

    As JSON a record that cannot be read is left out and told on standard error: what reads such a file later stops at
    the first bad line.

    Raises:
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    cluster.wait_for_brokers(settings)
    names = list(dict.fromkeys(name for item in what for name in TOPICS[item]))
    since_ms = ConsumerThread.START_NOW if since_s is None else int((time.time() - since_s) * 1000)
    end = None if seconds is None else asyncio.get_running_loop().time() + seconds
    left_out = 0
    async with ConsumerThread(kafka.reader(settings, "watch"), names, since_ms=since_ms) as consumer:
        try:
            async with asyncio.timeout_at(end):
                async for batch in consumer.batches():
                    for record in batch:
                        if not _is_asked_for(record, what):
                            continue
                        if not as_json:
                            _show(record, console)
                        elif problem := _write(record, console):
                            left_out += 1
                            if left_out <= NAMED:
                                stderr.print(f"arb: left out, cannot be read: {problem}")
        except TimeoutError:
            return
        finally:  # also when it ends by Ctrl-C
            if left_out:
                stderr.print(f"arb: {left_out} record{'s' if left_out > 1 else ''} left out that cannot be read")


def _is_asked_for(record: kafka.Record, what: list[str]) -> bool:
    """Health shares its topic with books and trades."""
    tick = record.topic.startswith("tick-data-")
    return not tick or "ticks" in what or (record.value or b"").startswith(b'{"kind":"health"')


def _show(record: kafka.Record, console: Console) -> None:
    try:
        message = decode(record.value)
    except UndecodableRecord as error:
        console.print(f"undecodable record on {_problem(record, error)}", style="red", markup=False)
        return
    console.print(line(message), markup=False)


def _write(record: kafka.Record, console: Console) -> str | None:
    """The value as it stands, on one line; if it cannot be read nothing, and where and why."""
    try:
        decode(record.value)
        if record.topic in TOPICS["ticks"]:
            tick = read_tick(record.value)  # the replay of ticks is stricter: a number as text is none there
            if isinstance(tick, BookTick):
                levels(tick.bids)
                levels(tick.asks)
        # JSON allows a line's end between its words only, where a space means the same; ours have none.
        text = b" ".join((record.value or b"").splitlines()).decode()
    except (UndecodableRecord, UnicodeDecodeError) as error:
        return _problem(record, error)
    console.out(text, highlight=False)
    return None


def _problem(record: kafka.Record, error: Exception) -> str:
    from services.cli.decisions.show import clean  # only here: it brings much along, and most never need it

    words = clean(" ".join(str(error).split()))[:MOST_WORDS]
    return f"{record.topic}/{record.partition}@{record.offset}: {words}"


def line(message: AnyMessage) -> str:
    """One message in one line."""
    match message:
        case Decision():
            roles = ", ".join(f"{record.role} {role_words(record)}" for record in message.roles) or "no model asked"
            return (
                f"{_time(message.decided_ns)} {message.base} {message.outcome} ({message.reason}, {message.mode}) "
                f"score {score(message)}, net {message.net_bps:.1f} bps, {roles}, "
                f"{message.panel.elapsed_ms} ms, {message.panel.cost_usd:.6f} USD"
            )
        case Opportunity():
            why = f" ({message.close_reason})" if message.close_reason else ""
            return (
                f"{_time(message.detected_ns)} {message.base} {message.phase}{why}: buy {_leg(message.buy)}, "
                f"sell {_leg(message.sell)}, {message.size} for {message.profit_usd:.2f} USD, "
                f"net {message.net_bps:.1f} bps"
            )
        case Rejection():
            naive, net = (
                "unknown" if bps is None else f"{bps:.1f} bps" for bps in (message.naive_bps, message.net_bps)
            )
            reasons = ", ".join(reason.value for reason in message.reasons)
            return (
                f"{_time(message.detected_ns)} {message.base} rejection {message.phase}: {reasons}; buy "
                f"{_leg(message.buy)}, sell {_leg(message.sell)}, naive {naive}, net {net}"
            )
        case DelayedEdge():
            edge = "missed" if message.net_bps is None else f"net {message.net_bps:.1f} bps"
            return (
                f"{_time(message.evaluated_ns)} {message.base} {message.delay_ms} ms after opening: {edge}, "
                f"{'still executable' if message.executable else 'not executable'}; {message.opportunity_id}"
            )
        case Audit(decision=made):
            calls = sum(1 + len(record.others) for record in made.roles)
            return (
                f"{_time(made.decided_ns)} {made.base} audit of decision {made.decision_id}: {made.outcome} "
                f"({made.reason}), {calls} calls or skips"
            )
        case Shadow(call=call):
            return (
                f"{_time(message.asked_ns)} {message.base} {call.role} in shadow: {call.model_asked} "
                f"{role_words(call)}, {call.latency_ms} ms; {message.decision_id}"
            )
        case Health():
            why = f": {message.reason}" if message.reason else ""
            return f"{_time(message.received_ns)} {message.exchange} {message.symbol} {message.state}{why}"
    return message.encode().decode()


def _leg(leg: Leg) -> str:
    return f"{leg.exchange} {leg.symbol}"


def _time(at_ns: int) -> str:
    return f"{datetime.datetime.fromtimestamp(at_ns / 1e9):%H:%M:%S.%f}"[:-3]
