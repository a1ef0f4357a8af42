"""The services on a real broker: ticks in, decisions out; the demo as a whole."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared import kafka, messages, topics
from shared.messages import Reason, decode
from shared.settings import KafkaSettings

pytestmark = pytest.mark.integration


@contextmanager
def service(broker: KafkaSettings, log: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`arb ARGUMENTS` as a process; ended by SIGTERM, which it must obey with exit 0."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ARB_")}
    variables |= {"ARB_KAFKA_SERVERS": broker.servers, **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", *arguments], env=variables, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"SIGTERM was not obeyed within 20 s:\n{log.read_text()[-3000:]}") from None
        assert code in (0, -signal.SIGKILL), log.read_text()


def until_assigned(log: Path) -> None:
    """An opportunity is judged while it is fresh: publish it when its reader is there."""
    end = time.monotonic() + 30
    while "assigned" not in log.read_text(errors="replace"):
        assert time.monotonic() < end, log.read_text(errors="replace")
        time.sleep(0.05)  # another process's log: there is no event to wait for


class Reader:
    """What comes on topics from now on, as decoded messages of one coin."""

    def __init__(self, broker: KafkaSettings, names: list[str]) -> None:
        self._reader = kafka.Reader(kafka.reader(broker, "test"), names, None)
        self._reader.read(1, 1.0)
        self.records: list[kafka.Record] = []

    def until(self, found: Callable[[list[kafka.Record]], Any], timeout_s: float = 30) -> Any:
        end = time.monotonic() + timeout_s
        while not (result := found(self.records)):
            assert time.monotonic() < end, f"not within {timeout_s} s; read {len(self.records)} records"
            self.records += self._reader.read(100, 0.1)
        return result

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def reader(broker) -> Iterator[Callable[..., Reader]]:
    opened: list[Reader] = []

    def make(*names: str) -> Reader:
        opened.append(Reader(broker, list(names)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def of(records: list[kafka.Record], base: str, kind: str) -> list[Any]:
    found = []
    for record in records:
        if record.key == base.encode() and not record.topic.endswith(".dlq"):
            message = decode(record.value)
            if message.kind == kind:
                found.append(message)
    return found


def books(out: kafka.Publisher, base: str, bid: float, sequence: int) -> None:
    """Coinbase at 100, Kraken with this bid."""
    now = time.time_ns()
    for exchange, (best_bid, best_ask) in {"coinbase": (99.9, 100.0), "kraken": (bid, bid + 0.1)}.items():
        value = messages.book_value(
            exchange, f"{base}-USD", sequence, now, None, [(best_bid, 10.0)], [(best_ask, 10.0)]
        )
        out.publish(topics.ticks(exchange), base, value)


def coin() -> str:
    return f"T{uuid.uuid4().hex[:6].upper()}"


def test_ticks_become_an_opportunity_a_decision_and_their_end(broker, reader, tmp_path):
    base = coin()
    seen = reader(topics.OPPORTUNITIES, topics.REJECTIONS, topics.DECISIONS, topics.TICKS_DLQ)
    out = kafka.Publisher(kafka.tick_producer(broker, "test"), drop_when_full=True)
    sequence = time.time_ns() // 1_000_000
    no_keys = dict.fromkeys(("OPENAI_API_KEY", "GEMINI_API_KEY", "DEEPSEEK_API_KEY", "HOLYSHEEP_API_KEY"), "")
    no_keys |= {f"ARB_EXCHANGES_{name}": json.dumps({"symbols": [f"{base}-USD"]}) for name in ("COINBASE", "KRAKEN")}
    no_keys |= {
        "ARB_ASSETS_ALLOW": json.dumps([base, "BTC", "ETH", "SOL"]),
        "ARB_DECIDER_STATE_FILE": str(tmp_path / "decider.sqlite"),
    }
    with (
        service(broker, tmp_path / "detector.log", "detect") as detector,
        service(broker, tmp_path / "decider.log", "decide", **no_keys),
    ):

        def feed(bid: float) -> Callable[[list[kafka.Record]], Any]:
            nonlocal sequence
            sequence += 1
            books(out, base, bid, sequence)
            return lambda _: None

        def wait_for(found: Callable[[list[kafka.Record]], Any], bid: float) -> Any:
            def step(records: list[kafka.Record]) -> Any:
                feed(bid)
                return found(records)

            return seen.until(step)

        # What was published before the detector was there is old by now: rejected for its health, until a fresh tick.
        wait_for(lambda records: [r for r in of(records, base, "rejection") if r.reasons == [Reason.FEES]], 100.3)
        opened = wait_for(lambda records: [o for o in of(records, base, "opportunity") if o.phase == "opened"], 103.0)[
            0
        ]
        assert (opened.buy.exchange, opened.sell.exchange) == ("coinbase", "kraken")
        assert opened.profit_usd > 0
        decision = wait_for(lambda records: of(records, base, "decision"), 103.0)[0]
        assert (decision.outcome, decision.mode, decision.reason) == ("hold", "rules_only", "no_keys")
        assert decision.opportunity_id == opened.opportunity_id
        out.publish(topics.ticks("kraken"), base, b"this is no tick")
        (dead, *_) = wait_for(
            lambda records: [r for r in records if r.topic == topics.TICKS_DLQ and r.key == base.encode()], 103.0
        )
        headers = dict(dead.headers)
        assert dead.value == b"this is no tick"
        assert headers["__dlq.topic"] == b"tick-data-kraken"
        assert headers["__dlq.error.class"] == b"UndecodableRecord"

        # A detector killed with -9: the next one goes on with the same opportunity, under its old id.
        detector.kill()
        detector.wait()
        with service(broker, tmp_path / "detector2.log", "detect"):
            count = len(of(seen.records, base, "opportunity"))
            again = wait_for(lambda records: of(records, base, "opportunity")[count:], 103.0)[0]
            assert again.opportunity_id == opened.opportunity_id
            assert again.phase in ("updated", "closed")
            ended = wait_for(lambda records: [o for o in of(records, base, "opportunity") if o.phase == "closed"], 99.0)
            assert {o.opportunity_id for o in ended} >= {opened.opportunity_id}
    out.close()


def test_the_demo_finds_every_gap_and_invents_none(tmp_path):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ARB_")}
    for name in ("ARB_CACHE_DIR",):
        if name in os.environ:
            variables[name] = os.environ[name]
    command = [
        sys.executable,
        "-m",
        "services.cli",
        "demo",
        "--seconds",
        "20",
        "--seed",
        "3",
        "--json",
        "--keep-logs",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["broker"] in ("jars", "docker", "mock")
    assert report["books_live"] == {"binance": 3, "coinbase": 4, "kraken": 5, "bybit": 3, "okx": 3}
    assert min(report["ticks"].values()) > 100
    truth = report["truth"]
    assert truth["gaps"] > 0
    assert truth["found"] == truth["gaps"]
    assert truth["false"] == 0
    assert report["opportunities"]["opened"] == report["opportunities"]["closed"] > 0
    assert report["rejections"].get("fees", 0) > 0
    assert sum(report["decisions"]["outcome"].values()) == report["opportunities"]["opened"]
    assert report["latency_ms"]["frame_to_opportunity"]["p50"] is not None
