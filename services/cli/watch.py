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
    Decision,
    DelayedEdge,
    Health,
    Leg,
    Opportunity,
    Rejection,
    Shadow,
    decode,
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


async def follow(
    settings: KafkaSettings,
    what: list[str],
    since_s: float | None,
    seconds: float | None,
    as_json: bool,
    console: Console,
) -> None:
    """Print what comes, one line a message, until cancelled or for `seconds`.

    Raises:
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    cluster.wait_for_brokers(settings)
    names = list(dict.fromkeys(name for item in what for name in TOPICS[item]))
    since_ms = ConsumerThread.START_NOW if since_s is None else int((time.time() - since_s) * 1000)
    end = None if seconds is None else asyncio.get_running_loop().time() + seconds
    async with ConsumerThread(kafka.reader(settings, "watch"), names, since_ms=since_ms) as consumer:
        try:
            async with asyncio.timeout_at(end):
                async for batch in consumer.batches():
                    for record in batch:
                        _show(record, what, as_json, console)
        except TimeoutError:
            return


def _show(record: kafka.Record, what: list[str], as_json: bool, console: Console) -> None:
    value = record.value or b""
    tick = record.topic.startswith("tick-data-")
    if tick and "ticks" not in what and not value.startswith(b'{"kind":"health"'):
        return  # health shares its topic with books and trades
    if as_json:
        console.out(value.decode(errors="replace"), highlight=False)
        return
    try:
        message = decode(value)
    except UndecodableRecord as error:
        console.print(f"undecodable record on {record.topic}/{record.partition}@{record.offset}: {error}", style="red")
        return
    console.print(line(message), markup=False)


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
