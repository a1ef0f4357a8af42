"""A decider that is killed with -9 at each step of its work, and the next one: what is decided, recorded and paid."""

import asyncio
import itertools
import json
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.decider import budget as money
from services.decider.state import PANEL, SHADOW, State
from shared import kafka, messages, settings, topics
from shared.messages import Tokens
from shared.settings import KafkaSettings
from tests.decider.hostile import Exchange, Hostile, http, never, reply
from tests.integration.test_decider import PROVIDERS, killed, of_kind, opportunity, send, user, variables
from tests.integration.test_pipeline import service, until_assigned

pytestmark = pytest.mark.integration

USED = Tokens(input=400, out=100)
ANSWER = http(200, reply(usage={"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": 500}))
CANDIDATE = "gpt-5.4-mini"
TIMES = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000, "auto.commit.interval.ms": 10}
"""What is stored too early is committed before the kill."""

NAMED = TIMES | {"group.instance.id": "decider-1"}
"""The next one with the same name has its partitions at once, not after the session of the one that was killed."""


@dataclass
class Death:
    """How things stood when a decider was dead.

    Attributes:
        asked: How many questions the models had got.
        decided, recorded: Opportunities of which Kafka had the decision, the audit record.
    """

    asked: int
    decided: set[str]
    recorded: set[str]


@dataclass
class Books:
    """What was sent, asked, decided and paid in the lives of some deciders, one after the other.

    Attributes:
        sent: The numbers of opportunities, by id.
        asked: Number, role and model of each question, in order.
    """

    broker: KafkaSettings
    state: Path
    began_ns: int = field(default_factory=time.time_ns)
    think_s: float = 0.15
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[int, str, str]] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)

    def more(self, count: int) -> list[messages.Opportunity]:
        """Opportunities of nine routes, to be decided within a minute."""
        found = []
        begin = self.began_ns // 10**9 % 10**6 * 1000 + len(self.sent)  # not those of a test that failed before
        for n in range(begin, begin + count):
            one = opportunity(n, base=("BTC", "ETH", "SOL")[n // 3 % 3])
            found.append(one.model_copy(update={"expires_ns": one.detected_ns + 60_000_000_000}))
            self.sent[one.opportunity_id] = n
        return found

    def note(self, exchange: Exchange) -> None:
        """Count a question."""
        question, model = user(exchange), exchange.request.json()["model"]
        self.asked.append((round(question["profit_usd"]) - 1, question["role"], model))

    async def think(self, exchange: Exchange) -> None:
        """A model that answers every question."""
        self.note(exchange)
        exchange.keep = True
        await asyncio.sleep(self.think_s)
        await exchange.send(ANSWER)

    async def death(self) -> Death:
        """To be called when one is dead, before the next one works."""
        found = await asyncio.to_thread(self.published)
        decided = {d.opportunity_id for d in of_kind(found, "decision")}
        recorded = {a.decision.opportunity_id for a in of_kind(found, "audit")}
        self.deaths.append(Death(len(self.asked), decided & set(self.sent), recorded & set(self.sent)))
        self.check_money()
        return self.deaths[-1]

    async def until_all_decided(self) -> None:
        """None is lost."""
        end, waiting = time.monotonic() + 30, set(self.sent)
        while waiting:
            assert time.monotonic() < end, f"no decision about {len(waiting)} of {len(self.sent)}"
            found = await asyncio.to_thread(self.published)
            waiting = set(self.sent) - {decision.opportunity_id for decision in of_kind(found, "decision")}

    def published(self) -> list[kafka.Record]:
        """All of it."""
        names = [topics.DECISIONS, topics.AUDIT]
        return kafka.read_range(kafka.reader(self.broker, "test"), names, self.began_ns // 1_000_000)

    def check(self) -> None:
        """What is promised, at the end of the last one."""
        records = self.published()
        decisions = [d for d in of_kind(records, "decision") if d.opportunity_id in self.sent]
        audits = [a.decision for a in of_kind(records, "audit") if a.decision.opportunity_id in self.sent]
        assert all(decision in audits for decision in decisions), "a decision has no record"
        ids: dict[str, set[str]] = {}
        for decision in decisions + audits:
            ids.setdefault(decision.opportunity_id, set()).add(decision.decision_id)
        assert all(len(found) == 1 for found in ids.values()), "decided again, it has its old name"
        often = Counter(decision.opportunity_id for decision in decisions)
        lives = [0, *(death.asked for death in self.deaths), len(self.asked)]
        for begin, end in itertools.pairwise(lives):
            assert max(Counter(self.asked[begin:end]).values(), default=0) <= 1, "a question was asked twice in a life"
        for death in self.deaths:
            again = {n for n, _, _ in self.asked[death.asked :]}
            assert not again & {self.sent[one] for one in death.decided}, "a decision was paid for again"
            assert all(often[one] == 1 for one in death.decided), "a decision was made again"
        self.check_money()

    def check_money(self) -> None:
        """What providers may bill is in the book, also when nobody was left to settle it."""
        with State(self.state, read_only=True) as book:
            days = book.booked(self.began_ns).days
        for name, candidate in ((PANEL, False), (SHADOW, True)):
            assert Decimal(days.get(name, 0)) / money.PICO >= self.billed(candidate=candidate)

    def billed(self, *, candidate: bool) -> Decimal:
        """USD for all questions that the models got."""
        models, day = settings.load().models, datetime.fromtimestamp(self.began_ns / 1e9, UTC).date()
        chosen = [model for _, _, model in self.asked if (model == CANDIDATE) == candidate]
        return sum((money.cost(models[model], USED, day) for model in chosen), Decimal(0))


@pytest.fixture
def books(broker, tmp_path) -> Books:
    return Books(broker, tmp_path / "decider.sqlite")


def environment_of(server: Hostile, folder: Path, options: dict[str, Any], **more: str) -> dict[str, str]:
    """One in which an opportunity that is read again is asked about again, a minute long."""
    patient = {"max_age_ms": 60_000, "verdict_ttl_ms": 0, "max_panels_in_flight": 4, "max_minute_usd": 10}
    found = variables(dict.fromkeys(PROVIDERS, server.base_url), folder, **patient)
    return found | {"ARB_KAFKA_OPTIONS": json.dumps(options)} | more


@pytest.mark.parametrize(
    "steps",
    [
        ["reserving"],
        ["booking"],
        ["reserved"],
        ["audited"],
        ["delivered"],
        ["held back"],
        ["record held back"],
        ["settling"],
        ["settled"],
        ["storing", "reading the tail"],
    ],
    ids=" then ".join,
)
async def test_killed_at_a_step_it_loses_no_decision_and_pays_for_none_that_was_delivered(
    steps, broker, out, books, tmp_path
):
    async with Hostile(then=books.think) as server:
        environment = environment_of(server, tmp_path, NAMED)
        with killed(broker, tmp_path / "first.log", steps[0], 3, **environment) as decider:
            await asyncio.to_thread(until_assigned, tmp_path / "first.log")
            send(out, *books.more(9))
            assert await asyncio.to_thread(decider.wait, 30) == -signal.SIGKILL
        death = await books.death()
        assert len(death.decided) < 9, "it was in the middle of its work"
        if steps == ["audited"]:
            assert death.recorded > death.decided
        if steps == ["delivered"]:
            assert death.decided
        for step in steps[1:]:
            with killed(broker, tmp_path / "second.log", step, 1, **environment) as decider:
                assert await asyncio.to_thread(decider.wait, 30) == -signal.SIGKILL
            await books.death()
        with service(broker, tmp_path / "last.log", "decide", **environment):
            await asyncio.to_thread(until_assigned, tmp_path / "last.log")
            await books.until_all_decided()
    await asyncio.to_thread(books.check)


async def test_killed_while_a_candidate_is_asked_in_shadow_it_pays_for_no_decision_again(broker, out, books, tmp_path):
    asked = asyncio.Event()

    async def think(exchange: Exchange) -> None:
        if exchange.request.json()["model"] != CANDIDATE:
            await books.think(exchange)
            return
        books.note(exchange)
        asked.set()
        await never(exchange)

    async with Hostile(then=think) as server:
        trial = {"candidate": {"provider": "openai", "model": CANDIDATE, "stage": "shadow", "share": 1}}
        environment = environment_of(server, tmp_path, NAMED, ARB_ROLES_SENTIMENT=json.dumps(trial))
        with service(broker, tmp_path / "first.log", "decide", **environment) as decider:
            await asyncio.to_thread(until_assigned, tmp_path / "first.log")
            send(out, *books.more(1))
            async with asyncio.timeout(20):
                await asked.wait()
            await books.until_all_decided()
            decider.kill()
            decider.wait()
        await books.death()
        send(out, *books.more(1))
        with service(broker, tmp_path / "last.log", "decide", **environment):
            await books.until_all_decided()
    await asyncio.to_thread(books.check)


@pytest.mark.parametrize("step", ["revoking", "revoked", "handed over"])
async def test_killed_while_it_hands_over_it_leaves_every_decision_to_the_other(step, broker, out, books, tmp_path):
    async with Hostile(then=books.think) as server:
        environment = environment_of(server, tmp_path, NAMED)
        other = environment | {"ARB_KAFKA_OPTIONS": json.dumps(TIMES)}
        books.think_s = 0.3
        with killed(broker, tmp_path / "first.log", step, 1, **environment) as decider:
            await asyncio.to_thread(until_assigned, tmp_path / "first.log")
            with service(broker, tmp_path / "other.log", "decide", **other):
                async with asyncio.timeout(30):
                    while decider.poll() is None:  # more than it can decide: some is always in flight
                        send(out, *books.more(1))
                        await asyncio.sleep(0.05)
                assert decider.returncode == -signal.SIGKILL
                death = await books.death()
                if step == "revoking":
                    asked = {n for n, _, _ in books.asked}
                    assert asked - {books.sent[one] for one in death.decided}, "some were in flight"
                books.think_s = 0.15
                await books.until_all_decided()
    await asyncio.to_thread(books.check)
