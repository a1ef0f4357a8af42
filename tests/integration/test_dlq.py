"""Dead letters on a real broker: put aside by a real decider, listed, shown, sent again, answered; once, whoever sends."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.cli.dlq import box
from services.cli.dlq.letters import FROM, REPLAYED, Wanted, place_of, refusal
from shared import cluster, kafka, topics
from shared.messages import decode
from tests.cli.test_commands import arb
from tests.integration.test_pipeline import Reader, service
from tests.samples import opportunity

pytestmark = pytest.mark.integration

DLQ = topics.dlq(topics.OPPORTUNITIES)
NO_KEYS = dict.fromkeys(("OPENAI_API_KEY", "GEMINI_API_KEY", "DEEPSEEK_API_KEY", "HOLYSHEEP_API_KEY"), "")


@pytest.fixture
def seen(broker):
    reader = Reader(broker, [topics.OPPORTUNITIES, topics.DECISIONS, DLQ])
    yield reader
    reader.close()


def until_stable(broker):
    end = time.monotonic() + 90
    while not cluster.group_is_stable(broker, "decider"):
        assert time.monotonic() < end
        time.sleep(0.1)  # another process joins its group: there is no event to wait for


def put_aside(out, value, stage):
    """As a reader does it; its stage makes it a letter of this test's own."""
    record = kafka.Record(topics.OPPORTUNITIES, 0, 7, b"BTC", value, int(time.time() * 1000), [("own", b"kept")])
    kafka.dead_letter(out, record, group="test", stage=stage, error=ValueError("of the test"))
    out.confirm()


def test_a_letter_is_listed_shown_and_answered_when_it_is_sent_again(broker, seen, out, tmp_path):
    poison = b'{"kind":"opportunity","of":"%s"}' % uuid.uuid4().hex.encode()
    one = opportunity(time.time_ns(), opportunity_id=uuid.uuid4().hex)
    stage = f"test-{uuid.uuid4().hex}"
    variables = NO_KEYS | {"ARB_DECIDER_STATE_FILE": str(tmp_path / "decider.sqlite")}
    with service(broker, tmp_path / "decider.log", "decide", **variables):
        until_stable(broker)
        out.publish(topics.OPPORTUNITIES, "BTC", poison)
        put_aside(out, one.encode(), stage)
        (bad,) = seen.until(lambda records: [r for r in records if r.topic == DLQ and r.value == poison])
        bad_id = f"{DLQ}/{bad.partition}/{bad.offset}"
        (good,) = box.find(broker, Wanted(stage=stage))
        assert (good.attempts, good.error) == (0, "ValueError")
        dead = box.one(broker, place_of(bad_id))
        assert (dead.group, dead.stage, dead.value) == ("decider", "decode", poison)

        done = arb("dlq", "replay", bad_id, str(good.place), "--yes", "--json", ARB_KAFKA_SERVERS=broker.servers)
        assert done.returncode == 1, done.stderr + done.stdout
        answer = json.loads(done.stdout)
        assert answer["sent"] == [str(good.place)]
        assert "--force sends it all the same" in answer["refused"][bad_id]
        seen.until(
            lambda records: [
                r
                for r in records
                if r.topic == topics.DECISIONS and decode(r.value).opportunity_id == one.opportunity_id
            ]
        )
    source = str(good.place).encode()
    (replayed,) = [r for r in seen.records if r.topic == topics.OPPORTUNITIES and dict(r.headers).get(FROM) == source]
    assert (replayed.key, replayed.value) == (b"BTC", one.encode())
    assert dict(replayed.headers) == {"own": b"kept", REPLAYED: b"1", FROM: source}
    assert replayed.partition == kafka.partition_of("BTC", topics.EVENT_PARTITIONS)
    (after,) = box.find(broker, Wanted(stage=stage))
    assert (after.attempts, after.sent) == (1, 1)
    assert "it was sent once before" in refusal(after, int(time.time() * 1000), force=True, again=False)


def test_of_runs_at_the_same_time_each_letter_is_sent_by_one(broker, seen, out):
    stage, several = f"test-{uuid.uuid4().hex}", 20
    for _ in range(several):
        put_aside(out, opportunity(time.time_ns(), opportunity_id=uuid.uuid4().hex).encode(), stage)
    runs = [box.find(broker, Wanted(stage=stage)) for _ in range(3)]  # all have seen the same box
    assert [len(found) for found in runs] == [several] * 3
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda found: box.send(broker, found), runs))
    assert sum(len(one.taken) for one in results) == several
    assert sum(len(one.others) for one in results) == 2 * several
    ids = {str(letter.place).encode() for letter in runs[0]}
    sent = seen.until(
        lambda records: (
            [r for r in records if r.topic == topics.OPPORTUNITIES and dict(r.headers).get("__dlq.from") in ids]
            if len([r for r in records if dict(r.headers).get("__dlq.marker") == b"sent" and r.key in ids]) == several
            else []
        )
    )
    assert len(sent) == several
    after = box.find(broker, Wanted(stage=stage))
    assert [(one.attempts, one.sent) for one in after] == [(1, 1)] * several


class Died(Exception):
    pass


def test_a_run_that_dies_between_leaves_a_letter_that_nobody_sends_by_accident(broker, out):
    stage = f"test-{uuid.uuid4().hex}"
    put_aside(out, opportunity(time.time_ns(), opportunity_id=uuid.uuid4().hex).encode(), stage)

    def die():
        raise Died

    with pytest.raises(Died):
        box.send(broker, box.find(broker, Wanted(stage=stage)), die)
    (begun,) = box.find(broker, Wanted(stage=stage))
    assert "perhaps twice" in refusal(begun, int(time.time() * 1000), force=True, again=False)
    assert [one.place for one in box.send(broker, [begun]).taken] == [begun.place]
    (after,) = box.find(broker, Wanted(stage=stage))
    assert (after.attempts, after.sent) == (2, 1)
