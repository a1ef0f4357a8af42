"""The decider's shell without Kafka: order per coin, offsets past delivered decisions only, nothing decided twice."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from confluent_kafka import KafkaError

from services.decider.service import Service
from shared import topics
from shared.errors import AccessRefused, BrokerUnavailable
from shared.kafka import Record
from shared.messages import Audit, Decision, Shadow, decode
from shared.settings import Candidate
from tests.decider.conftest import NOW_NS, role_answer

CANDIDATE = "gpt-5.4-mini"


class Consumer:
    """Gives what the test puts in; remembers what was stored."""

    def __init__(self):
        self.incoming: asyncio.Queue = asyncio.Queue()
        self.stored = {}
        self.stores = 0
        self.released = 0

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def batches(self):
        while True:
            yield await self.incoming.get()

    def release(self, count):
        self.released += count

    def store(self, topic, partition, offset):
        self.stored[topic, partition] = offset
        self.stores += 1


class Publisher:
    """Remembers; delivers at once, or (topics in `held_back`) when told."""

    def __init__(self):
        self.sent = []
        self.held = []
        self.held_back = set()

    def publish(self, topic, key, value, headers, on_delivery=None, **_):
        self.sent.append((topic, key, decode(value) if not topic.endswith(".dlq") else value))
        if on_delivery is None:
            return
        if topic in self.held_back:
            self.held.append(on_delivery)
        else:
            on_delivery(None)

    def flush(self, *_):
        return 0

    def of(self, topic):
        return [message for sent_to, _, message in self.sent if sent_to == topic]


class Shell:
    def __init__(self, bench):
        self.bench, self.consumer, self.publisher = bench, Consumer(), Publisher()
        self.steady_s = 0.0
        self.service = Service(bench.decider, bench.newest, self.publisher, lambda: int(self.steady_s * 1e9))
        self.stop = asyncio.Event()
        self.offset = 0

    def put(self, *messages, partition=3):
        records = []
        for message in messages:
            value = message if isinstance(message, bytes) else message.encode()
            records.append(Record(topics.OPPORTUNITIES, partition, self.offset, b"BTC", value, 0, ()))
            self.offset += 1
        self.consumer.incoming.put_nowait(records)

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def decisions(self):
        return self.publisher.of(topics.DECISIONS)

    def asked(self):
        """Models in the order in which they were asked."""
        return [model for model, _, _ in self.bench.models.asked]

    async def lost_while_thinking(self, opportunity):
        """The partition is taken while the risk role thinks; what is returned lets it answer."""
        thinking = asyncio.Event()

        async def wait():
            await thinking.wait()
            return role_answer()

        self.bench.models.scripts[self.bench.models.roles["risk"]] = wait
        self.put(opportunity)
        await self.until(lambda: len(self.bench.models.asked) == 3)
        await asyncio.to_thread(self.service.on_lost, [(topics.OPPORTUNITIES, 3)])
        return thinking


@pytest.fixture
def running(workbench):
    @asynccontextmanager
    async def make(**changes):
        shell = Shell(workbench(**changes))
        task = asyncio.create_task(shell.service.run(shell.consumer, shell.stop))
        await asyncio.sleep(0)
        await asyncio.to_thread(shell.service.on_assigned, [(topics.OPPORTUNITIES, 3)], list)
        try:
            yield shell, task
        finally:
            shell.stop.set()
            await asyncio.gather(task, return_exceptions=True)

    return make


def numbered(opportunity, n, **changes):
    """Of one coin; each of a route of its own, so that none waits for another."""
    legs = {side: getattr(opportunity(), side).model_dump() for side in ("buy", "sell")}
    exchanges = ["binance", "bybit", "okx"]
    legs["buy"]["exchange"] = exchanges[n % 3]
    return opportunity(opportunity_id=f"{n:032x}", **legs, **changes)


async def test_a_decision_with_its_audit_and_then_the_offset(running, opportunity):
    async with running() as (shell, _):
        shell.put(opportunity())
        await shell.until(lambda: shell.consumer.stored)
        assert [decision.outcome for decision in shell.decisions()] == ["execute"]
        audits = shell.publisher.of(topics.AUDIT)
        assert [type(audit) for audit in audits] == [Audit]
        assert audits[0].decision == shell.decisions()[0]
        assert len(audits[0].questions) == 3
        assert all(question.system and question.user for question in audits[0].questions)
        assert shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 1}
        assert shell.consumer.released == 1


@pytest.fixture
def tried(configured):
    """A candidate for the risk role in shadow."""
    candidate = Candidate(provider="openai", model=CANDIDATE, stage="shadow", share=1.0)
    risk = configured.roles["risk"].model_copy(update={"candidate": candidate})
    return configured.model_copy(update={"roles": {**configured.roles, "risk": risk}})


async def test_what_a_candidate_in_shadow_answers_follows_the_decision_and_holds_nothing_up(
    running, opportunity, tried
):
    async with running(settings=tried, panel_deadline_ms=60_000) as (shell, _):
        gate = asyncio.Event()

        async def wait():
            await gate.wait()
            return role_answer(veto=True)

        shell.bench.models.scripts[CANDIDATE] = wait
        shell.put(opportunity())
        await shell.until(lambda: shell.consumer.stored and CANDIDATE in shell.asked())
        assert len(shell.publisher.sent) == 2, "the decision and its record, which do not wait for it"
        gate.set()
        await shell.until(lambda: len(shell.publisher.sent) == 3)
        (decision,) = shell.decisions()
        topic, key, shadow = shell.publisher.sent[-1]
        assert (topic, key, type(shadow)) == (topics.AUDIT, decision.decision_id, Shadow)
        assert (shadow.decision_id, shadow.opportunity_id) == (decision.decision_id, decision.opportunity_id)
        assert (shadow.call.model_asked, shadow.call.via, shadow.call.answer.veto) == (CANDIDATE, "shadow", True)
        assert decision.outcome == "execute", "it counts nowhere"


async def test_stopping_it_asks_no_candidate_and_waits_for_none(running, opportunity, tried):
    async with running(settings=tried, panel_deadline_ms=60_000) as (shell, task):
        thinking, never = asyncio.Event(), asyncio.Event()

        async def risk():
            await thinking.wait()
            return role_answer()

        shell.bench.models.scripts[CANDIDATE] = never.wait
        shell.put(opportunity())
        await shell.until(lambda: CANDIDATE in shell.asked())
        shell.bench.models.scripts[shell.bench.models.roles["risk"]] = risk
        shell.put(numbered(opportunity, 1))
        await shell.until(lambda: len(shell.asked()) == 7)
        shell.stop.set()
        await shell.until(lambda: shell.service.deciding() == (False, "stopping"))
        thinking.set()
        async with asyncio.timeout(10):
            await task
        assert len(shell.decisions()) == 2
        assert shell.asked().count(CANDIDATE) == 1, "only before the end"
        assert [type(audit) for audit in shell.publisher.of(topics.AUDIT)] == [Audit, Audit]


async def test_decisions_of_a_coin_leave_in_its_order_though_models_think_side_by_side(running, opportunity):
    gates = [asyncio.Event() for _ in range(3)]
    async with running(panel_deadline_ms=1400) as (shell, _):
        turn = iter(gates)

        async def wait():
            await next(turn).wait()
            return role_answer()

        shell.bench.models.scripts[shell.bench.models.roles["risk"]] = wait
        shell.put(*(numbered(opportunity, n) for n in range(3)))
        await shell.until(lambda: len(shell.bench.models.asked) == 9)
        gates[2].set()
        gates[1].set()
        await asyncio.sleep(0.05)
        assert shell.decisions() == [], "the first one is not ready"
        assert shell.consumer.stored == {}
        gates[0].set()
        await shell.until(lambda: len(shell.decisions()) == 3)
        assert [int(decision.opportunity_id, 16) for decision in shell.decisions()] == [0, 1, 2]


async def test_what_needs_no_model_does_not_overtake_what_does(running, opportunity):
    gate = asyncio.Event()
    async with running() as (shell, _):

        async def wait():
            await gate.wait()
            return role_answer()

        shell.bench.models.scripts[shell.bench.models.roles["risk"]] = wait
        shell.put(numbered(opportunity, 0), numbered(opportunity, 1, net_bps="1"))
        await shell.until(lambda: shell.bench.models.asked)
        assert shell.decisions() == []
        gate.set()
        await shell.until(lambda: len(shell.decisions()) == 2)
        assert [decision.reason for decision in shell.decisions()] == ["score", "rules"]


async def test_the_offset_waits_for_the_delivery(running, opportunity):
    async with running() as (shell, _):
        shell.publisher.held_back = {topics.DECISIONS}
        shell.put(opportunity(), numbered(opportunity, 7, phase="closed"))
        await shell.until(lambda: shell.publisher.held)
        await asyncio.sleep(0.02)
        assert shell.consumer.stored == {}, "not past a decision that is not delivered"
        for report in shell.publisher.held:
            report(None)
        await shell.until(lambda: shell.consumer.stored)
        assert shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 2}


async def test_updates_and_redeliveries_are_decided_once(running, opportunity):
    async with running() as (shell, _):
        shell.put(opportunity(), opportunity(phase="updated"), opportunity())
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 3})
        assert len(shell.decisions()) == 1
        assert len(shell.bench.models.asked) == 3


async def test_what_is_no_opportunity_goes_to_the_dead_letters(running, opportunity):
    async with running() as (shell, _):
        shell.put(b"{}", b"\xff", opportunity())
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 3})
        assert len(shell.publisher.of(topics.dlq(topics.OPPORTUNITIES))) == 2
        assert len(shell.decisions()) == 1


async def test_what_was_decided_by_another_before_is_not_paid_for_again(running, opportunity):
    async with running() as (shell, _):
        elsewhere = await shell.bench.decide(opportunity())
        before = len(shell.bench.models.asked)
        earlier = elsewhere.model_copy(update={"panel": elsewhere.panel.model_copy(update={"version": "ffffffff"})})
        record = Record(topics.DECISIONS, 0, 0, b"BTC", earlier.encode(), 0, ())
        await asyncio.to_thread(shell.service.on_assigned, [(topics.OPPORTUNITIES, 3)], lambda: [record])
        shell.put(opportunity(), numbered(opportunity, 10))
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 2})
        assert [int(decision.opportunity_id, 16) for decision in shell.decisions()] == [10]
        assert len(shell.bench.models.asked) == before + 3


@pytest.mark.parametrize("here", [True, False])
async def test_a_backlog_of_others_does_not_make_it_forget_what_was_paid_for(running, opportunity, monkeypatch, here):
    monkeypatch.setattr("services.decider.service.MOST_REMEMBERED", 3)
    async with running() as (shell, _):
        asked = numbered(opportunity, 7)
        if here:
            shell.put(asked)
        else:
            async with running() as (other, _):
                other.put(asked)
                await other.until(lambda: len(other.decisions()) == 1)
                tail = [Record(topics.DECISIONS, 3, 0, b"BTC", other.decisions()[0].encode(), 0, ())]
            await asyncio.to_thread(shell.service.on_assigned, [(topics.OPPORTUNITIES, 4)], lambda: tail)
        await shell.until(lambda: len(shell.decisions()) == here)
        shell.put(*(numbered(opportunity, n, expires_ns=NOW_NS) for n in range(100, 110)))
        await shell.until(lambda: len(shell.decisions()) == here + 10)
        shell.put(asked.model_copy(update={"phase": "updated"}), numbered(opportunity, 200, expires_ns=NOW_NS))
        await shell.until(lambda: len(shell.decisions()) == here + 11)
        assert len(shell.bench.models.asked) == 3 * here, "no second payment"


async def test_read_again_after_a_rebalance_the_offset_still_waits_for_the_delivery(running, opportunity, monkeypatch):
    monkeypatch.setattr("services.decider.service.DRAIN_S", 0.05)
    async with running() as (shell, _):
        shell.publisher.held_back = {topics.DECISIONS}
        shell.put(opportunity())
        await shell.until(lambda: shell.publisher.held)
        await asyncio.to_thread(shell.service.on_revoked, [(topics.OPPORTUNITIES, 3)])
        await asyncio.to_thread(shell.service.on_assigned, [(topics.OPPORTUNITIES, 3)], list)
        shell.offset = 0
        shell.put(opportunity())
        await asyncio.sleep(0.05)
        assert shell.consumer.stored == {}
        assert len(shell.decisions()) == 1, "nor is it decided again"
        for report in shell.publisher.held:
            report(None)
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 1})


async def test_what_is_delivered_together_is_one_offset(running, opportunity):
    async with running() as (shell, _):
        shell.publisher.held_back = {topics.DECISIONS}
        shell.put(*(numbered(opportunity, n, expires_ns=NOW_NS) for n in range(20)))
        await shell.until(lambda: len(shell.publisher.held) == 20)
        for report in shell.publisher.held[:-1]:
            report(None)
        await shell.until(lambda: shell.consumer.stored)
        assert shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 19}, "the last one is not delivered"
        assert shell.consumer.stores == 1


async def test_offsets_of_what_ends_during_a_hand_over_are_there_before_it_is_committed(running, opportunity):
    async with running() as (shell, _):
        shell.publisher.held_back = {topics.DECISIONS}
        shell.put(opportunity(expires_ns=NOW_NS))
        await shell.until(lambda: shell.publisher.held)
        handed_over = []

        def hand_over():
            shell.service.on_revoked([(topics.OPPORTUNITIES, 3)])
            handed_over.append(dict(shell.consumer.stored))

        task = asyncio.create_task(asyncio.to_thread(hand_over))
        await asyncio.sleep(0.05)
        for report in shell.publisher.held:
            report(None)
        await task
        assert handed_over == [{(topics.OPPORTUNITIES, 3): 1}]


async def test_an_update_of_what_opened_before_the_tail_is_not_paid_for_again(running, opportunity):
    async with running() as (shell, _):
        shell.put(
            opportunity(phase="updated", opened_ns=NOW_NS - 121_000_000_000),
            opportunity(opportunity_id="b" * 32, phase="updated", opened_ns=NOW_NS - 119_000_000_000),
        )
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 2})
        assert [decision.opportunity_id for decision in shell.decisions()] == ["b" * 32]


async def test_what_was_fetched_before_a_revocation_is_left_to_the_new_owner(running, opportunity, monkeypatch):
    monkeypatch.setattr("services.decider.service.DRAIN_S", 0.05)
    async with running() as (shell, _):
        revoked = asyncio.Event()

        async def revoke():
            await asyncio.to_thread(shell.service.on_revoked, [(topics.OPPORTUNITIES, 3)])
            revoked.set()

        shell.put(*(numbered(opportunity, n, expires_ns=NOW_NS) for n in range(2000)), opportunity())
        shell.publisher.held_back = {topics.DECISIONS}
        task = asyncio.create_task(revoke())
        await revoked.wait()
        await task
        await shell.until(lambda: shell.consumer.released + len(shell.decisions()) == 2001)
        assert shell.consumer.stored == {}
        assert shell.bench.models.asked == []


async def test_what_the_group_took_without_asking_is_left_to_the_new_owner(running, opportunity):
    place = (topics.OPPORTUNITIES, 3)
    async with running(panel_deadline_ms=60_000) as (shell, _):
        thinking = await shell.lost_while_thinking(opportunity())
        await asyncio.sleep(0)
        thinking.set()
        await shell.until(lambda: shell.consumer.released == 1)
        assert shell.decisions() == []
        assert shell.consumer.stored == {}
        await asyncio.to_thread(shell.service.on_assigned, [place], list)  # nobody else came: it is ours again
        shell.offset = 0
        shell.put(opportunity())
        await shell.until(lambda: shell.consumer.stored)
        assert len(shell.decisions()) == 1


async def test_lost_and_given_again_meanwhile_it_is_decided_once(running, opportunity):
    place = (topics.OPPORTUNITIES, 3)
    async with running(panel_deadline_ms=60_000) as (shell, _):
        thinking = await shell.lost_while_thinking(opportunity())
        await asyncio.to_thread(shell.service.on_assigned, [place], list)
        shell.offset = 0
        shell.put(opportunity())
        await shell.until(lambda: shell.consumer.incoming.empty())
        await asyncio.sleep(0)
        thinking.set()
        await shell.until(lambda: shell.consumer.stored)
        assert len(shell.decisions()) == 1
        assert shell.consumer.stored == {place: 1}


async def test_after_a_time_without_running_it_waits_for_what_the_group_says(running, opportunity, monkeypatch):
    monkeypatch.setattr("services.decider.service.SURE_S", 0.2)
    place = (topics.OPPORTUNITIES, 3)
    async with running() as (shell, _):
        shell.steady_s += 30.0  # stopped, or asleep
        shell.put(numbered(opportunity, 1), numbered(opportunity, 2, expires_ns=NOW_NS))
        await shell.until(lambda: len(shell.bench.models.asked) == 3)
        await asyncio.sleep(0.05)
        assert shell.decisions() == []
        await asyncio.to_thread(shell.service.on_lost, [place])
        shell.steady_s += 0.3
        await shell.until(lambda: shell.consumer.released == 2)
        assert shell.decisions() == []
        await asyncio.to_thread(shell.service.on_assigned, [place], list)
        shell.put(numbered(opportunity, 3))
        await shell.until(lambda: len(shell.decisions()) == 1)


async def test_numbers_that_nobody_thought_of_are_a_dead_letter_and_no_end(running, opportunity, monkeypatch):
    async with running() as (shell, _):

        def fails(case):
            raise OverflowError("too far")

        with monkeypatch.context() as patched:
            patched.setattr(shell.bench.decider, "conclude", fails)
            shell.put(numbered(opportunity, 1), numbered(opportunity, 2, net_bps="1"))
            await shell.until(lambda: len(shell.publisher.of(topics.dlq(topics.OPPORTUNITIES))) == 2)
        huge = opportunity().encode()[:-1] + b',"more":"' + b"x" * 200_000 + b'"}'
        far = opportunity(expires_ns=2**63 - 1).encode().replace(b"9223372036854775807", b"99999999999999999999")
        shell.put(huge, far, opportunity())
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 5})
        assert len(shell.publisher.of(topics.dlq(topics.OPPORTUNITIES))) == 4
        assert [decision.outcome for decision in shell.decisions()] == ["execute"]


async def test_a_decision_leaves_behind_its_record_in_the_order_of_its_coin(running, opportunity):
    async with running() as (shell, _):
        shell.publisher.held_back = {topics.AUDIT}
        shell.put(*(numbered(opportunity, n, expires_ns=NOW_NS) for n in range(3)))
        shell.put(numbered(opportunity, 10, base="ETH", expires_ns=NOW_NS))
        await shell.until(lambda: len(shell.publisher.held) == 4)
        first, second, third, other = shell.publisher.held
        for report, left in ((third, []), (other, [10]), (first, [10, 0]), (second, [10, 0, 1, 2])):
            report(None)
            await asyncio.sleep(0.01)
            assert [int(decision.opportunity_id, 16) for decision in shell.decisions()] == left
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 4})


async def test_whose_record_came_after_its_partition_had_gone_is_left_to_the_new_owner(running, opportunity):
    async with running() as (shell, _):
        shell.publisher.held_back = {topics.AUDIT}
        shell.put(opportunity())
        await shell.until(lambda: shell.publisher.held)
        await asyncio.to_thread(shell.service.on_lost, [(topics.OPPORTUNITIES, 3)])
        await asyncio.sleep(0)
        shell.publisher.held.pop()(None)
        await shell.until(lambda: shell.consumer.released == 1)
        assert (shell.decisions(), shell.consumer.stored) == ([], {})
        await asyncio.to_thread(shell.service.on_assigned, [(topics.OPPORTUNITIES, 3)], list)
        shell.publisher.held_back = set()
        shell.offset = 0
        shell.put(opportunity())
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 1})
        assert len(shell.decisions()) == 1, "given again, it is decided"


@asynccontextmanager
async def waiting_for_its_record(running, opportunity, **changes):
    async with running(**changes) as (shell, task):
        shell.publisher.held_back = {topics.AUDIT}
        shell.put(opportunity())
        await shell.until(lambda: shell.publisher.held)
        yield shell, task, shell.publisher.held.pop()


async def test_what_waited_for_its_record_while_this_process_did_not_run_is_left_to_the_new_owner(
    running, opportunity, monkeypatch
):
    monkeypatch.setattr("services.decider.service.SURE_S", 0.2)
    async with waiting_for_its_record(running, opportunity) as (shell, _, report):
        shell.steady_s += 30.0
        report(None)
        await asyncio.sleep(0.05)
        assert shell.decisions() == []
        await asyncio.to_thread(shell.service.on_lost, [(topics.OPPORTUNITIES, 3)])
        shell.steady_s += 0.3
        await shell.until(lambda: shell.consumer.released == 1)
        assert shell.decisions() == []


async def test_after_a_time_without_running_what_is_still_ours_leaves(running, opportunity, monkeypatch):
    monkeypatch.setattr("services.decider.service.SURE_S", 0.2)
    async with waiting_for_its_record(running, opportunity) as (shell, _, report):
        shell.steady_s += 30.0
        report(None)
        shell.steady_s += 0.1
        await asyncio.sleep(0.01)
        shell.steady_s += 0.2
        await shell.until(lambda: shell.decisions())


@pytest.mark.parametrize("why", ["closed", "kill_switch", "expired"])
async def test_what_waited_too_long_to_be_executed_is_decided_and_recorded_anew(running, opportunity, tmp_path, why):
    switch = tmp_path / "stop"
    async with waiting_for_its_record(running, opportunity, kill_switch=switch) as (shell, _, report):
        if why == "closed":
            shell.put(opportunity(phase="closed", detected_ns=NOW_NS + 1))
            await shell.until(lambda: shell.bench.newest.get(opportunity()).phase == "closed")
        elif why == "kill_switch":
            switch.touch()
        else:
            shell.bench.clock.now_ns = opportunity().expires_ns
        report(None)
        await shell.until(lambda: shell.publisher.held)
        assert shell.decisions() == []
        shell.publisher.held.pop()(None)
        await shell.until(lambda: shell.consumer.stored)
        (decision,), (first, second) = shell.decisions(), shell.publisher.of(topics.AUDIT)
        assert (decision.outcome, decision.reason) == ("hold", why)
        assert second.decision == decision
        assert first.decision.outcome == "execute"


async def test_what_another_decided_while_its_record_was_on_its_way_stays_his(running, opportunity):
    async with waiting_for_its_record(running, opportunity) as (shell, _, report):
        elsewhere = await shell.bench.decide(opportunity())
        asked = len(shell.bench.models.asked)
        place, tail = (topics.OPPORTUNITIES, 3), [Record(topics.DECISIONS, 3, 0, b"BTC", elsewhere.encode(), 0, ())]
        await asyncio.to_thread(shell.service.on_lost, [place])
        await asyncio.to_thread(shell.service.on_assigned, [place], lambda: tail)
        shell.put(opportunity(phase="updated"))
        report(None)
        shell.put(opportunity(phase="updated"))
        await shell.until(lambda: shell.consumer.released == 3)
        assert (shell.decisions(), len(shell.bench.models.asked)) == ([], asked)


async def test_a_publisher_that_takes_nothing_more_ends_the_service(running, opportunity, monkeypatch):
    async with waiting_for_its_record(running, opportunity) as (shell, task, report):

        def refuses(*_, **__):
            raise BrokerUnavailable("gone")

        monkeypatch.setattr(shell.publisher, "publish", refuses)
        report(None)
        with pytest.raises(BrokerUnavailable, match="gone"):
            await task
        assert shell.consumer.stored == {}


async def test_reports_from_several_threads_are_all_heard(running, opportunity):
    async with running() as (shell, _):
        shell.publisher.held_back = {topics.DECISIONS}
        shell.put(*(numbered(opportunity, n, expires_ns=NOW_NS) for n in range(400)))
        await shell.until(lambda: len(shell.publisher.held) == 400)
        held = shell.publisher.held
        with ThreadPoolExecutor(4) as pool:
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, report, None) for report in held))
        await shell.until(lambda: shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 400})
        assert shell.consumer.released == 400


@pytest.mark.parametrize(
    ("code", "failure", "words"),
    [
        (KafkaError._MSG_TIMED_OUT, BrokerUnavailable, "did not take a decision: Local: Message timed out"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, AccessRefused, "no rule allows this to our user"),
    ],
)
@pytest.mark.parametrize("topic", [topics.DECISIONS, topics.AUDIT])
async def test_what_kafka_does_not_take_ends_the_service(running, opportunity, code, failure, words, topic):
    async with running() as (shell, task):
        shell.publisher.held_back = {topic}
        shell.put(opportunity())
        await shell.until(lambda: shell.publisher.held)
        shell.publisher.held.pop()(KafkaError(code))
        with pytest.raises(failure, match=words):
            await task
        assert shell.consumer.stored == {}


async def test_stopped_it_finishes_what_is_in_flight(running, opportunity):
    async with running() as (shell, task):

        async def a_while():
            await asyncio.sleep(0.1)
            return role_answer()

        shell.bench.models.scripts[shell.bench.models.roles["risk"]] = a_while
        shell.put(opportunity())
        await shell.until(lambda: shell.bench.models.asked)
        shell.stop.set()
        await task
        assert [type(decision) for decision in shell.decisions()] == [Decision]
        assert shell.consumer.stored == {(topics.OPPORTUNITIES, 3): 1}


async def test_a_backlog_of_expired_opportunities_makes_no_task_and_no_call(running, opportunity):
    async with running() as (shell, _):
        before = len(asyncio.all_tasks())
        most = 0
        for n in range(500):
            shell.put(numbered(opportunity, n, expires_ns=NOW_NS))
            most = max(most, len(asyncio.all_tasks()))
        await shell.until(lambda: len(shell.decisions()) == 500)
        assert {decision.reason for decision in shell.decisions()} == {"expired"}
        assert shell.bench.models.asked == []
        assert most <= before
