"""`arb watch --json`: a file of it can be read later, whatever stands on the topics."""

import asyncio
import io

import pytest
from rich.console import Console

from services.cli import report, watch
from services.detector import recorded
from shared import messages, settings, topics
from shared.kafka import Record
from shared.messages import decode
from tests.samples import opportunity

AT_NS = 1_780_000_000_000_000_000
GOOD = opportunity(AT_NS).encode()


def book(bids=((100.0, 1.0),)):
    return messages.book_value("kraken", "BTC-USD", 7, AT_NS, None, bids, [(101.0, 1.0)])


HEALTH = messages.health_value("kraken", "BTC-USD", 8, AT_NS, "live", None, AT_NS, AT_NS)


class Read:
    """In place of Kafka: one batch, then nothing, as a topic to which nobody writes; or its end."""

    def __init__(self, records: list[Record], *, ends: bool = True) -> None:
        self.records, self.ends = records, ends

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_: object):
        return None

    async def batches(self):
        yield self.records
        if not self.ends:
            await asyncio.Event().wait()


def records(topic: str, *values: bytes | None) -> list[Record]:
    return [Record(topic, 3, 40 + number, b"BTC", value, 0, []) for number, value in enumerate(values)]


@pytest.fixture
def follow(monkeypatch):
    """What is written for these records, and what is said on standard error."""

    async def run(read: list[Record], *what: str, as_json: bool = True, seconds: float | None = None):
        monkeypatch.setattr(watch.cluster, "wait_for_brokers", lambda kafka: None)
        monkeypatch.setattr(watch, "ConsumerThread", lambda *_, **__: Read(read, ends=seconds is None))
        said = Console(file=io.StringIO(), soft_wrap=True, highlight=False, markup=False)
        monkeypatch.setattr(watch, "stderr", said)
        out = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
        await watch.follow(settings.load().kafka, list(what), 60.0, seconds, as_json, out)
        return out.file.getvalue().encode(), said.file.getvalue().splitlines()

    return run


async def test_what_can_be_read_is_written_byte_for_byte_and_the_rest_is_told(follow, tmp_path):
    spaced = GOOD.replace(b'","', b'" ,  "', 1)
    bad = [b"not json", b"", None, b'{"kind":"other"}', b"\xff\xfe", GOOD[:-1], b'{"kind":"opportunity","v":1}']
    out, said = await follow(records(topics.OPPORTUNITIES, GOOD, *bad, spaced), "opportunities")
    assert out == GOOD + b"\n" + spaced + b"\n"
    assert len(said) == watch.NAMED + 1
    assert all(line.startswith("arb: left out, cannot be read: arbitrage-opportunities/3@4") for line in said[:-1])
    assert "/3@41: Invalid JSON" in said[0]
    assert "/3@42: empty record" in said[1]
    assert said[-1] == "arb: 7 records left out that cannot be read"
    file = tmp_path / "backup.jsonl"
    file.write_bytes(out)
    assert [message.kind for _, message in report.messages_in([file])] == ["opportunity"] * 2


async def test_all_good_nothing_is_said(follow):
    assert await follow(records(topics.OPPORTUNITIES, GOOD), "opportunities") == (GOOD + b"\n", [])


async def test_they_are_counted_when_the_time_is_over(follow):
    out, said = await follow(records(topics.OPPORTUNITIES, b"{}", GOOD), "opportunities", seconds=0.05)
    assert out == GOOD + b"\n"
    assert said[-1] == "arb: 1 record left out that cannot be read"


async def test_a_message_over_several_lines_is_written_on_one(follow):
    out, said = await follow(records(topics.OPPORTUNITIES, GOOD.replace(b",", b",\r\n", 3) + b"\n"), "opportunities")
    assert (out.count(b"\n"), b"\r" in out, said) == (1, False, [])
    assert decode(out) == decode(GOOD)


async def test_ticks_are_what_the_replay_takes(follow, tmp_path):
    text_for_a_number = book().replace(b'"sequence":7', b'"sequence":"7"')
    decode(text_for_a_number)  # only the replay refuses it
    bad = [text_for_a_number, book([["x", 1]]), GOOD]
    out, said = await follow(records(topics.ticks("kraken"), book(), *bad, HEALTH), "ticks")
    assert out == book() + b"\n" + HEALTH + b"\n"
    assert said[-1].startswith("arb: 3 records")
    file = tmp_path / "ticks.jsonl"
    file.write_bytes(out)
    assert len(list(recorded.of_files([file]))) == 2


async def test_health_alone_leaves_books_out_in_silence(follow):
    values = records(topics.ticks("kraken"), book(), HEALTH)
    assert await follow(values, "health") == (HEALTH + b"\n", [])


async def test_a_reason_is_one_line_whatever_it_quotes(follow):
    value = b'{"kind":"a\\u001b[2J\\n[bold]' + b"x" * 1000 + b'"}'
    _, said = await follow(records(topics.OPPORTUNITIES, value), "opportunities")
    assert len(said) == 2
    assert "[bold]" in said[0]
    assert "\x1b" not in said[0]
    assert len(said[0]) < 400


async def test_for_people_it_stands_among_the_others(follow):
    out, said = await follow(records(topics.OPPORTUNITIES, b"no", GOOD), "opportunities", as_json=False)
    first, second = out.decode().splitlines()
    assert first.startswith("undecodable record on arbitrage-opportunities/3@40: ")
    assert "BTC opened" in second
    assert said == []
