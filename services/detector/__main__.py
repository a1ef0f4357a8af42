"""Wiring of the detector: settings, readers, engine, publisher, run; live, and over what was recorded."""

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import structlog

from services.detector import recorded
from services.detector.engine import Engine
from services.detector.quiet import PLAIN
from services.detector.recorded import Member, Range, Stopped
from services.detector.replay import Recorded, merged, refuse, replay
from services.detector.service import ADOPT_MS, BACK_MS, GROUP, Detector
from shared import cluster, kafka, process, topics
from shared.errors import InputError, UsageError
from shared.health import Health
from shared.kafka.watch import Pulse
from shared.settings import Settings
from shared.symbols import split

log = structlog.get_logger()

READ = [*topics.tick_topics(), topics.FX_RATES]
EVENTS = [topics.OPPORTUNITIES, topics.REJECTIONS, topics.OUTCOMES]
FLUSH_S = 2.0


def health() -> Health:
    """What a detector says of itself. Its loop waits for Kafka in a rebalance, and while it reads back."""
    return Health("detector", ("kafka", "assignment", "caught_up"), stuck_s=60.0)


def main(settings: Settings, health: Health) -> None:
    """Detect until SIGTERM or SIGINT.

    Raises:
        BrokerUnavailable: exit 3.
        TopicMismatch: topics missing, or not co-partitioned: exit 2.
    """
    stop = process.stop_on_signal()
    process.look_for_garbage_seldom()
    if PLAIN is not None:
        log.warning("ticks are read by Python alone: right, but at half the rate or less", why=PLAIN[0], next=PLAIN[1])
    cluster.require_topics(settings.kafka, [*READ, *EVENTS, topics.TICKS_DLQ])
    publisher = kafka.Publisher(kafka.event_producer(settings.kafka, "detector"), drop_when_full=False)
    now_ms = int(time.time() * 1000)
    config = kafka.tick_consumer(settings.kafka, "detector", GROUP)
    member = kafka.statistics_of(config)

    def read_open() -> Sequence[kafka.Record]:
        publisher.flush(FLUSH_S)  # what is on its way from here is to be found, too
        since_ms = int(time.time() * 1000) - ADOPT_MS
        return kafka.read_range(
            kafka.reader(settings.kafka, "detector"), [topics.OPPORTUNITIES, topics.OUTCOMES], since_ms
        )

    detector = Detector(
        Engine(settings, owned=lambda base: False),  # until the group gives us some
        publisher,
        read_open,
        lambda record, error: kafka.dead_letter(publisher, record, group=GROUP, stage="decode", error=error),
        persistence_ms=settings.detector.persistence_ms,
        beat=health.beat,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(publisher.close)
        pulse = stack.enter_context(Pulse(publisher.brokers, publisher.trouble))
        health.watch("kafka", pulse.look)
        health.watch("assignment", member.assignment)
        health.watch("caught_up", detector.caught_up)
        every, since_ms = kafka.reader(settings.kafka, "detector"), now_ms - BACK_MS
        others = [kafka.Reader(every, [topics.FX_RATES], since_ms)]
        if numbers := bridge_numbers(settings):
            others.append(kafka.Reader(every, topics.tick_topics(), since_ms, numbers))
        for reader in others:
            stack.callback(reader.close)
        ticks = kafka.TicksReader(config, topics.tick_topics(), BACK_MS, detector.on_owned)
        stack.callback(ticks.close)
        detector.run(ticks, others, stop)
        publisher.flush(FLUSH_S)
        detector.release()  # before the group is left: the next owner looks for what is missing
        publisher.flush(FLUSH_S)


def bridge_numbers(settings: Settings) -> set[int]:
    """Partition numbers of the bridge coins that some symbol is quoted in: their books are needed whoever owns them."""
    if not settings.detector.routes:
        return set()
    quotes = {split(symbol)[1] for one in settings.enabled_exchanges().values() for symbol in one.symbols}
    return {kafka.partition_of(base, topics.TICK_PARTITIONS) for base in quotes.intersection(settings.detector.bridges)}


def from_files(settings: Settings, files: Sequence[Path], within: Range | None, out: Path | None) -> None:
    """What the messages of files bring, as JSON lines to `out` (standard output without).

    Raises:
        InputError: a file or a line of it cannot be read.
        Stopped: by a signal.
    """
    stop = process.stop_on_signal()
    messages = merged(recorded.of_files(files, within))
    _write(settings, messages, within, out, stop, strict=True)


def from_topics(settings: Settings, within: Range, out: Path | None) -> None:
    """The same from the tick topics.

    Raises:
        UsageError: some of the range has been deleted, or may still grow.
        BrokerUnavailable, TopicMismatch: as for any reader.
        Stopped: by a signal.
    """
    stop = process.stop_on_signal()
    cluster.require_topics(settings.kafka, READ)
    found = recorded.find(settings, within)
    messages = merged(recorded.of_topics(settings, found, within))
    _write(settings, messages, within, out, stop, strict=False)


def share(settings: Settings, within: Range, group: str) -> None:
    """Publish what a range of the topics brings, as one of any number of processes with the same `group`.

    Raises:
        UsageError: some of the range has been deleted or may still grow, or the group is not one for this.
        ArbiterError: told to stop before all was done.
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    if group == GROUP:
        raise UsageError(f"--group {group!r} is that of the live detectors; choose another name")
    stop = process.stop_on_signal()
    cluster.require_topics(settings.kafka, [*READ, *EVENTS])
    found = recorded.find(settings, within)
    with contextlib.ExitStack() as stack:
        publisher = kafka.Publisher(kafka.event_producer(settings.kafka, "replay"), drop_when_full=False)
        stack.callback(publisher.close)
        config = kafka.share_consumer(settings.kafka, "replay", group)
        member = kafka.PartitionShare(config, topics.tick_topics(), recorded.group_label(within))
        stack.callback(member.close)
        Member(settings, within, member, publisher, found, stop).run()


def _write(
    settings: Settings,
    messages: Iterable[Recorded],
    within: Range | None,
    out: Path | None,
    stop: threading.Event,
    *,
    strict: bool,
) -> None:
    until_ns = None if within is None else within.until_ns
    counts = Counter({"ticks": 0, "opportunity opened": 0, "rejection opened": 0})

    def counted() -> Iterator[Recorded]:
        for message in messages:
            if stop.is_set():
                raise Stopped("stopped before the end; what was written is not the whole")
            counts["ticks"] += 1
            yield message

    with _output(out) as file:
        for event in replay(Engine(settings), counted(), until_ns, refuse if strict else recorded.leave_out):
            file.write(event.encode() + b"\n")
            counts[event.kind if event.kind == "outcome" else f"{event.kind} {event.phase}"] += 1
        file.flush()
    log.info("replayed", **{name.replace(" ", "_"): count for name, count in sorted(counts.items())})


@contextlib.contextmanager
def _output(out: Path | None) -> Iterator[IO[bytes]]:
    if out is None:
        yield sys.stdout.buffer
        return
    part = out.with_name(f"{out.name}.part")  # half a result must not look like a whole one
    try:
        with part.open("wb") as file:
            yield file
        part.replace(out)
    except OSError as error:
        raise InputError(str(out), error.strerror or str(error)) from None
    finally:
        part.unlink(missing_ok=True)
