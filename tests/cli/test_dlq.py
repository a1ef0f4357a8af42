"""Dead letters: what a record says, what may go out again and as what, and what is shown."""

import io
import json

import pytest
from rich.console import Console

from services.cli.dlq import box as mailbox
from services.cli.dlq import letters, show
from services.cli.dlq.letters import CLAIMED, FROM, REPLAYED, SENT, Box, Marker, Place, Wanted
from shared import kafka, messages, secrets, topics
from shared.errors import AccessRefused, BrokerUnavailable, UndecodableRecord, UsageError
from shared.kafka import Record
from shared.settings import KafkaSettings
from tests import samples

NOW_MS = 1_795_000_000_000
DLQ = topics.dlq(topics.OPPORTUNITIES)


class Kept:
    """In place of a publisher: what was published, as records of one partition."""

    def __init__(self):
        self.records = []

    def publish(self, topic, key, value, headers=None, on_delivery=None):
        key = key.encode() if isinstance(key, str) else key
        self.records.append(Record(topic, 3, len(self.records), key, value, NOW_MS, headers or []))
        return True


def dead(value=b"{}", topic=topics.OPPORTUNITIES, stage="decode", headers=(), at_ms=NOW_MS, error=None):
    """A record as the services put it aside."""
    kept = Kept()
    record = Record(topic, 5, 41, b"BTC", value, at_ms, [("traceparent", b"00-1"), *headers])
    kafka.dead_letter(kept, record, group="decider", stage=stage, error=error or UndecodableRecord("base: missing"))
    return kept.records[0]


def good():
    return samples.opportunity(NOW_MS * 1_000_000).encode()


def marker(place, kind, attempt, run, offset, at_ms=NOW_MS):
    key, headers = letters.marked(Marker(place, kind, attempt, run))
    return Record(DLQ, 3, offset, key.encode(), None, at_ms, headers)


def box(*records, wanted=None):
    found = Box(wanted or Wanted())
    for record in records:
        found.take(record)
    return found


def only(*records):
    (letter,) = box(*records).letters()
    return letter


def printed(what, *arguments, **options):
    out = io.StringIO()
    what(Console(file=out, soft_wrap=True, highlight=False), *arguments, **options)
    return out.getvalue()


def test_a_dead_letter_says_where_it_comes_from_and_why():
    letter = only(dead(b'{"kind":"opportunity"}'))
    assert str(letter.place) == f"{DLQ}/3/0"
    assert (letter.topic, letter.partition, letter.offset, letter.timestamp_ms) == (topics.OPPORTUNITIES, 5, 41, NOW_MS)
    assert (letter.group, letter.stage, letter.error) == ("decider", "decode", "UndecodableRecord")
    assert letter.message == "base: missing"
    assert letter.headers == [("traceparent", b"00-1")], "its own only"
    assert letters.place_of(str(letter.place)) == letter.place


@pytest.mark.parametrize(
    "text", ["", "x", f"{DLQ}/1", f"{DLQ}/1/x", f"{DLQ}/-1/2", "arbitrage-opportunities/1/2", f"{DLQ}/1/2/3"]
)
def test_what_is_no_id_is_refused_with_what_is_one(text):
    with pytest.raises(UsageError, match=r"TOPIC/PARTITION/OFFSET.*arbitrage-opportunities\.dlq"):
        letters.place_of(text)


def test_every_topic_that_a_service_reads_with_care_has_its_dead_letters_here():
    assert set(letters.dead_letter_topics()) == {
        topics.dlq(name) for name in (*topics.tick_topics(), topics.FX_RATES, topics.OPPORTUNITIES)
    }


def test_what_belongs_on_its_topic_now_may_go_and_nothing_else():
    assert letters.refusal(only(dead(good())), NOW_MS, force=False, again=False) is None
    for value in (b"", b"{}", b"\xff", b'{"kind":"opportunity"}', b"[1]"):
        why = letters.refusal(only(dead(value)), NOW_MS, force=False, again=False)
        assert why is not None
        assert why.endswith("--force sends it all the same")
        assert letters.refusal(only(dead(value)), NOW_MS, force=True, again=False) is None
    assert "does not belong on arbitrage-opportunities" in letters.decodes(only(dead(rate())))
    assert "bytes, an opportunity" in letters.decodes(only(dead(good() + b" " * 300_000)))


def rate():
    return messages.rate_value("kraken", "USDT-USD", 7, NOW_MS * 1_000_000, None, 0.99, 1.0, "live")


def book():
    return messages.book_value("kraken", "BTC-USD", 7, NOW_MS * 1_000_000, None, [(1.0, 1.0)], [(2.0, 1.0)])


@pytest.mark.parametrize(("value", "topic"), [(book(), topics.ticks("kraken")), (rate(), topics.FX_RATES)])
def test_an_old_price_means_nothing_and_is_refused(value, topic):
    fresh, old = only(dead(value, topic)), only(dead(value, topic, at_ms=NOW_MS - 3_600_000))
    assert letters.refusal(fresh, NOW_MS, force=False, again=False) is None
    why = letters.refusal(old, NOW_MS, force=False, again=False)
    assert why == "its price is 3600 s old and means nothing now; --force sends it all the same"
    assert letters.refusal(old, NOW_MS, force=True, again=False) is None


def test_an_old_opportunity_may_go_the_decider_answers_it_as_expired():
    assert letters.refusal(only(dead(good(), at_ms=NOW_MS - 86_400_000)), NOW_MS, force=False, again=False) is None


def test_a_record_of_somebody_else_is_never_sent_whatever_is_said():
    foreign = Record(DLQ, 0, 9, None, b"hello", NOW_MS, [("__dlq.topic", b"__consumer_offsets")])
    for record in (foreign, foreign._replace(headers=[]), dead(good(), topic=DLQ)):
        why = letters.refusal(only(record), NOW_MS, force=True, again=True)
        assert why is not None
        assert "none of ours" in why


def test_what_goes_out_has_its_own_headers_and_says_how_often():
    first = dead(good())
    letter = only(first, marker(Place(DLQ, 3, 0), CLAIMED, 1, "a", 1))
    headers = letters.outgoing(letter)
    assert headers == [("traceparent", b"00-1"), (REPLAYED, b"1"), (FROM, f"{DLQ}/3/0".encode())]
    # It dies again: the new letter goes on counting.
    second = only(dead(good(), headers=headers[1:]))
    assert second.attempts == 0
    assert second.replays == 1
    second.attempts = 1
    assert dict(letters.outgoing(second))[REPLAYED] == b"2"
    assert dict(letters.outgoing(second))[FROM] == str(second.place).encode()


def test_what_was_sent_is_not_sent_twice_unless_told():
    place = Place(DLQ, 3, 0)
    claim, sent = marker(place, CLAIMED, 1, "a", 1), marker(place, SENT, 1, "a", 2, NOW_MS + 5)
    for records in (
        [dead(good()), claim, sent],
        [claim, sent, dead(good())],
    ):  # of two partitions either may come first
        letter = only(*records)
        assert (letter.attempts, letter.sent, letter.sent_ms) == (1, 1, NOW_MS + 5)
        assert (
            letters.refusal(letter, NOW_MS, force=True, again=False)
            == "it was sent once before; --again sends it once more"
        )
        assert letters.refusal(letter, NOW_MS, force=False, again=True) is None
    begun = only(dead(good()), claim)
    assert "perhaps twice" in letters.refusal(begun, NOW_MS, force=True, again=False)
    assert show.state(begun).startswith("begun")


def test_of_two_runs_that_claim_one_attempt_the_first_in_the_log_has_it():
    place = Place(DLQ, 3, 0)
    found = box(
        dead(good()),
        marker(place, CLAIMED, 1, "a", 1),
        marker(place, CLAIMED, 1, "b", 2),
        marker(place, CLAIMED, 2, "b", 3),
    )
    assert found.claims == {(place, 1): "a", (place, 2): "b"}
    assert found.letters()[0].attempts == 2


def test_a_marker_that_is_not_ours_is_a_letter_like_any_other():
    for key, kind in ((b"x", b"claimed"), (None, b"sent"), (f"{DLQ}/1/2".encode(), b"other")):
        record = Record(DLQ, 0, 1, key, None, NOW_MS, [("__dlq.marker", kind)])
        assert letters.marker_of(record) is None


def test_letters_are_chosen_by_what_they_are():
    one, other = dead(good()), dead(good(), stage="decide", error=ValueError("x"))._replace(offset=1)
    assert len(box(one, other).letters()) == 2
    for wanted in (
        Wanted(stage="decide"),
        Wanted(error="ValueError"),
        Wanted(frozenset([Place(DLQ, 3, 1)])),
        Wanted(topic=topics.OPPORTUNITIES, stage="decide"),
        Wanted(topic=DLQ, error="ValueError"),
    ):
        (letter,) = box(one, other, wanted=wanted).letters()
        assert letter.stage == "decide"
    assert not box(one, other, wanted=Wanted(topic=topics.FX_RATES)).letters()


def test_the_list_sums_up_and_says_how_to_go_on():
    records = [dead(b"{}")._replace(offset=n, timestamp_ms=NOW_MS + n * 1000) for n in range(3)]
    found = box(
        *records,
        dead(b"x", topics.FX_RATES)._replace(topic="fx-rates.dlq"),
        marker(Place(DLQ, 3, 0), CLAIMED, 1, "a", 9),
    )
    text = printed(show.show_heaps, found.letters())
    assert "4 dead letters, 3 of them not sent again" in text
    assert "arbitrage-opportunities, decode, UndecodableRecord: 3, 2 not sent again" in text
    assert f"arb dlq show {DLQ}/3/2" in text
    assert "base: missing" in text


def test_one_is_shown_whole_without_keys_and_without_what_moves_a_cursor():
    secrets_key = "sk-planted-0123456789abcdef"
    value = json.dumps({"kind": "opportunity", "note": secrets_key, "title": "\u001b[2J"}).encode()
    text = printed(show.show_letter, only(dead(value)), full=False)
    assert secrets_key not in text
    assert secrets.MASK in text
    assert "\x1b" not in text
    assert '"kind": "opportunity"' in text
    assert "Field required" in text, "what is wrong with it now"
    assert "not sent again" in text
    raw = printed(show.show_letter, only(dead(b"\xff\x1b[2J\x00")), full=False)
    assert "\\xff\\x1b[2J\\x00" in raw
    long = only(dead(b"a" * 10_000))
    assert "6000 more characters; --full shows all" in printed(show.show_letter, long, full=False)
    assert "a" * 10_000 in printed(show.show_letter, long, full=True)


def test_numbers_that_nobody_can_mean_break_nothing():
    many = b"9" * 5000
    record = dead(good(), headers=[(REPLAYED, many)])
    hostile = record._replace(headers=[(k, many if k == "__dlq.offset" else v) for k, v in record.headers])
    letter = only(hostile)
    assert (letter.offset, letter.replays) == (-1, 0)
    printed(show.show_letter, letter, full=False)
    with pytest.raises(UsageError, match="is no id"):
        letters.place_of(f"{DLQ}/1/{'9' * 5000}")


def test_what_was_cut_is_never_sent():
    record = dead(good())
    cut = only(record._replace(headers=[*record.headers, ("__dlq.cut", b"2000000")]))
    assert letters.refusal(cut, NOW_MS, force=True, again=True) == "only the beginning of its 2000000 bytes was kept"


class Out(Kept):
    """A publisher whose records are what the topic holds; it fails when it is told to."""

    def __init__(self, fails, error):
        super().__init__()
        self.fails, self.error = fails, error

    def publish(self, topic, key, value, headers=None, on_delivery=None):
        if self.fails(topic, dict(headers)):
            raise self.error
        return super().publish(topic, key, value, headers)

    def confirm(self):
        pass

    def close(self, timeout_s):
        pass


def sent(monkeypatch, *records, fails=lambda topic, headers: False, error=None):
    """Letters are listed without values, and sent; what was published."""
    out = Out(fails, error)
    monkeypatch.setattr(kafka, "Publisher", lambda *_, **__: out)
    monkeypatch.setattr(mailbox, "read", lambda *_: [*records, *out.records])
    settings = KafkaSettings(servers="a:1")
    return mailbox.send(settings, mailbox.find(settings, Wanted())), out.records


def test_values_are_read_for_what_is_sent_only(monkeypatch):
    result, records = sent(monkeypatch, dead(good()))
    assert [one.value for one in records if one.topic == topics.OPPORTUNITIES] == [good()]
    assert [one.place for one in result.taken] == [Place(DLQ, 3, 0)]
    unread = Box(Wanted(), values=False)
    unread.take(dead(b"{}"))
    (letter,) = unread.letters()
    assert letter.value is None
    assert "--force" in letters.refusal(letter, NOW_MS, force=False, again=False), "judged without its value"


def test_a_letter_that_was_deleted_in_between_is_not_sent_as_nothing(monkeypatch):
    letter = only(dead(good()))
    out = Out(lambda *_: False, None)
    monkeypatch.setattr(kafka, "Publisher", lambda *_, **__: out)
    monkeypatch.setattr(mailbox, "read", lambda *_: list(out.records))
    result = mailbox.send(KafkaSettings(servers="a:1"), [letter])
    assert (result.taken, result.others, result.gone) == ((), (), (letter,))
    assert {one.topic for one in out.records} == {DLQ}


@pytest.mark.parametrize("error", [AccessRefused("no rule"), BrokerUnavailable("no answer")])
def test_what_failed_says_whether_anything_may_have_gone_out(monkeypatch, error):
    with pytest.raises(type(error), match="nothing was sent") as before:
        sent(monkeypatch, dead(good()), fails=lambda topic, headers: topic == DLQ, error=error)
    assert before.value.exit_code == error.exit_code
    with pytest.raises(type(error), match="may have gone out") as after:
        sent(monkeypatch, dead(good()), fails=lambda topic, headers: topic != DLQ, error=error)
    assert after.value.exit_code == error.exit_code


def test_letters_of_one_coin_go_out_in_their_old_order():
    records = [dead(good(), at_ms=NOW_MS - n)._replace(offset=n) for n in range(5)]
    found = letters.in_their_order(box(*records).letters())
    assert [one.place.offset for one in found] == [4, 3, 2, 1, 0]


def test_a_letter_keeps_no_value_where_only_sums_are_wanted():
    kept = Box(Wanted(), values=False)
    kept.take(dead(good()))
    assert kept.letters()[0].value is None
