"""One role's part in one panel: its model, and those that stand in for it or are on trial.

Every call goes the same way: a key, the guards, the budget, the model, and back through budget and guards with what
became of it. Whatever happens the result is a record; only a cancellation passes through.
"""

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal

import structlog

from services.decider import budget as money
from services.decider.budget import Budget, Reservation
from services.decider.guards import Guards
from services.decider.llm import CallResult
from services.decider.models import Models
from services.decider.prompt import Prompt
from services.decider.state import DAY_NS
from services.decider.trials import Trials
from shared import metrics
from shared.messages import CallRecord, Question, Role, RoleRecord, Tokens, Via
from shared.settings import Candidate, ModelChoice, Settings

log = structlog.get_logger()

INSTEAD = frozenset(
    (
        "late",
        "server",
        "network",
        "saturated",
        "skipped:breaker",
        "skipped:not_before",
        "skipped:limiter",
        "skipped:disabled",
    )
)
"""Outcomes after which another model may be asked: nothing was answered, and this model is the reason."""

NO_TOKENS, NO_COST = Tokens(), Decimal(0)
TURN_S = 0.05
"""Spare time for going on to the next model, beside the least that it needs itself."""


@dataclass(frozen=True)
class Desk:
    """What all calls share. `clock` gives nanoseconds since the epoch, `monotonic` seconds."""

    settings: Settings
    models: Models
    guards: Guards
    budget: Budget
    trials: Trials
    clock: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic


@dataclass
class Purse:
    """What the calls for one opportunity have reserved so far (USD), and what became of it: to be settled together."""

    spent: Decimal = Decimal(0)
    ended: list[tuple[Reservation, Decimal]] = field(default_factory=list)

    def settle(self, budget: Budget, now_ns: int) -> None:
        """Settle the calls that have ended; until then their worst case counts, also if this process is killed."""
        if self.ended:
            budget.settle_all(self.ended, now_ns)
            self.ended.clear()


@dataclass
class _Call:
    """One call, also while it runs."""

    choice: ModelChoice
    via: Via
    began: float
    refused: str | None = None
    amount: Decimal = Decimal(0)
    reserved: Reservation | None = None
    record: CallRecord | None = None
    raw: str | None = None


def share_of(opportunity_id: str, role: Role) -> float:
    """A number in [0, 1) that is the same for an opportunity wherever and whenever it is judged."""
    digest = hashlib.sha256(f"{role}|{opportunity_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def on_trial(candidate: Candidate | None, stage: str, opportunity_id: str, role: Role, trials: Trials) -> bool:
    """Whether the candidate of a role is asked for this opportunity at this stage."""
    return (
        candidate is not None
        and candidate.stage == stage
        and share_of(opportunity_id, role) < candidate.share
        and trials.allowed(role, candidate)
    )


@dataclass
class RoleAsker:
    """Asks for one role (see `panel.Asker`).

    Args:
        ends: Until when the panel lasts, by `desk.monotonic`.
        only: Ask this model alone (a candidate in shadow).
    """

    desk: Desk
    role: Role
    prompt: Prompt
    user: str
    opportunity_id: str
    purse: Purse
    ends: float
    only: tuple[ModelChoice, Via] | None = None
    _calls: list[_Call] = field(default_factory=list)
    _counts: _Call | None = None
    _ready: _Call | None = None

    def __post_init__(self) -> None:
        self._text = self.prompt.text + self.user
        self._chain = self._models()

    async def ask(self) -> RoleRecord:
        """The answer of the first model in the chain that gives one, or an abstention."""
        chain = self._chain
        best: _Call | None = None
        for place, (choice, via) in enumerate(chain):
            if place > 0 and not self._time_left():
                break
            instead = chain[place + 1][0] if place + 1 < len(chain) else None
            hedged = False
            if instead is not None and via == "primary" and self.desk.settings.guards.hedge:
                best, hedged = await self._hedged(choice, via, instead)
                self._close_losers()
            else:
                best = await self._call(choice, via, another=instead is not None)
            if hedged or not self._failed(best):
                break
        assert best is not None
        return self._record(best)

    def abstention(self) -> RoleRecord | None:
        """The record of a role whose chain has no model that may be asked now; else None, and nothing is taken."""
        desk, now_s = self.desk, self.desk.monotonic()
        for choice, _ in self._chain:
            if desk.models.has(choice.provider):
                state = desk.guards.state(choice.provider, choice.model, now_s)
                if state not in ("disabled", "open", "waiting"):
                    return None
        for choice, via in self._chain:
            call = self._admitted(choice, via, now_s)  # as of that moment: a cool-down may end in this very one
            self._calls.append(call)
            assert call.refused is not None
            self._ended(call, CallResult(call.refused))
        return self._record(self._calls[-1])

    def stopped(self, outcome: str) -> RoleRecord:
        """The record after a cancellation: a call that was cut off may be billed all the same, so its money stands."""
        self._send_back()
        last: _Call | None = None
        for call in self._calls:
            if call.record is None:
                self._ended(call, CallResult(outcome))
                last = call
        return self._record(last or self._calls[-1]) if self._calls else self._nothing(outcome)

    def question(self) -> Question:
        """What was asked and answered, as text."""
        ordered = self._ordered()
        return Question.trusted(
            role=self.role, system=self.prompt.text, user=self.user, raw=[call.raw for call in ordered]
        )

    # ------------------------------------------------ which model

    def _models(self) -> list[tuple[ModelChoice, Via]]:
        if self.only is not None:
            return [self.only]
        chosen = self.desk.settings.roles[self.role]
        chain: list[tuple[ModelChoice, Via]] = [(chosen, "primary")]
        if on_trial(chosen.candidate, "canary", self.opportunity_id, self.role, self.desk.trials):
            assert chosen.candidate is not None
            chain.insert(0, (chosen.candidate, "canary"))
        if chosen.fallback is not None:
            chain.append((chosen.fallback, "fallback"))
        return chain

    def _time_left(self) -> bool:
        return self.ends - self.desk.monotonic() >= self.desk.settings.decider.min_useful_ms / 1000

    async def _hedged(self, choice: ModelChoice, via: Via, other: ModelChoice) -> tuple[_Call, bool]:
        """Ask the other too once this one takes longer than usual; the first answer counts.

        What this one says itself (that it cannot judge, a refusal) is not overruled by the other; what keeps the other
        from an answer does not end the wait for this one.

        Returns:
            The call that counts, and whether the other was asked: else it is still there as a fallback.
        """
        first = asyncio.create_task(self._call(choice, via, another=True))
        tasks = [first]
        try:
            p95_s = self.desk.settings.models[choice.model].p95_ms / 1000
            done, pending = await asyncio.wait(tasks, timeout=p95_s)
            if pending and self.desk.trials.hedge():
                tasks.append(asyncio.create_task(self._call(other, "hedge")))
                pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=tasks.index):
                    found = task.result()
                    answered = found.record is not None and found.record.answer is not None
                    if answered or (task is first and not self._failed(found)):
                        return found, len(tasks) > 1
            return first.result(), len(tasks) > 1
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _close_losers(self) -> None:
        for call in self._calls:
            if call.record is None:
                self._ended(call, CallResult("unneeded"))

    @staticmethod
    def _failed(call: _Call) -> bool:
        return call.record is not None and call.record.outcome in INSTEAD

    # ------------------------------------------------ a call

    async def _call(self, choice: ModelChoice, via: Via, *, another: bool = False) -> _Call:
        """One call, until its own deadline: the panel's, or early enough for `another` model to be asked."""
        desk = self.desk
        call = self._ready
        if call is None:
            call = self._admitted(choice, via, desk.monotonic())
            _pay(desk, self.purse, [call])
        self._ready = None
        call.began = desk.monotonic()
        self._calls.append(call)
        result = CallResult(call.refused) if call.refused else None
        if result is None:
            allowed_s = self._allowed_s(choice, another)
            try:
                async with contextlib.nullcontext() if allowed_s is None else asyncio.timeout(allowed_s):
                    result = await desk.models.ask(choice, self.prompt.text, self.user)
            except TimeoutError:
                result = CallResult("late")
        self._ended(call, result)
        return call

    def _allowed_s(self, choice: ModelChoice, another: bool) -> float | None:
        """Seconds until the call's own deadline; None: the panel ends it."""
        timeout_ms = self.desk.settings.models[choice.model].timeout_ms
        limits = [] if timeout_ms is None else [timeout_ms / 1000]
        least_s = self.desk.settings.decider.min_useful_ms / 1000
        left_s = self.ends - self.desk.monotonic() - least_s - TURN_S
        if another and left_s >= least_s:  # else all that is left is this one's
            limits.append(left_s)
        return min(limits, default=None)

    def _admitted(self, choice: ModelChoice, via: Via, now_s: float) -> _Call:
        """The call, with why it may not be made or what it can cost: to be paid for before it is made."""
        desk = self.desk
        call = _Call(choice, via, now_s)
        if not desk.models.has(choice.provider):
            call.refused = "skipped:disabled"
            return call
        model, text = desk.settings.models[choice.model], self._text
        call.amount = money.worst_case(model, text, _day(desk.clock()))  # before the guards: they want to hear the end
        tokens = money.estimated_tokens(text) + model.max_out
        call.refused = desk.guards.refuses(choice.provider, choice.model, tokens, now_s)
        return call

    def _send_back(self) -> None:
        """Give up a call that was made ready and will not be made."""
        call, self._ready = self._ready, None
        if call is None:
            return
        if call.reserved is not None:
            self.purse.ended.append((call.reserved, NO_COST))
        if call.reserved is not None or call.refused == "skipped:budget":  # the guards let it through
            choice = call.choice
            self.desk.guards.report(choice.provider, choice.model, "unneeded", self.desk.monotonic())

    def _ended(self, call: _Call, result: CallResult) -> None:
        """Money, guards, trial, metrics and the record of a call that is over."""
        desk, choice = self.desk, call.choice
        elapsed_ms = int((desk.monotonic() - call.began) * 1000)
        tokens, cost = NO_TOKENS, NO_COST
        if call.reserved is not None:
            model = desk.settings.models[choice.model]
            if result.billed():
                tokens = money.clamp(model, self._text, result.usage)
                cost = money.cost(model, tokens, _day(desk.clock()))
            elif result.outcome in ("late", "unneeded", "network") and not result.unsent:
                cost = call.reserved.amount  # it may have been done, and will be billed then
            self.purse.ended.append((call.reserved, cost))
        asked = call.reserved is not None
        if asked or result.outcome == "skipped:budget":
            words = desk.guards.report(
                choice.provider,
                choice.model,
                result.outcome,
                desk.monotonic(),
                result.retry_after_s,
                alone=call.via in ("shadow", "canary") or result.http == 403,
            )
            if words is not None:
                log.warning("model", provider=choice.provider, model=choice.model, words=words)
        if asked:
            gone = desk.trials.took(self.role, choice, call.via, result.outcome, elapsed_ms, desk.clock())
            if gone is not None:
                metrics.ROLLBACKS.labels(role=self.role, model=choice.model).inc()
                log.error("candidate rolled back", role=self.role, model=choice.model, why=gone)
            if result.outcome != "unneeded":  # cut off by us: no time of the model's
                metrics.series(metrics.MODEL_LATENCY_MS, choice.provider).observe(elapsed_ms)
            metrics.series(metrics.MODEL_COST_USD, choice.provider).inc(float(cost))
            for kind, count in (("in", tokens.input), ("cached", tokens.cached), ("out", tokens.out)):
                if count:
                    metrics.series(metrics.MODEL_TOKENS, choice.provider, kind).inc(count)
        metrics.series(metrics.MODEL_CALLS, choice.provider, self.role, result.outcome).inc()
        call.raw = result.raw
        call.record = CallRecord.trusted(  # of values that are ours or were checked as they came
            provider=choice.provider,
            model_asked=choice.model,
            via=call.via,
            model_reported=result.model_reported,
            fingerprint=result.fingerprint,
            outcome=result.outcome,
            http=result.http,
            request_id=result.request_id,
            latency_ms=elapsed_ms if asked else 0,
            tokens=tokens,
            cost_usd=cost,
            answer=result.answer,
            raw_sha256=result.raw_sha256,
        )

    # ------------------------------------------------ the record

    def _ordered(self) -> list[_Call]:
        """The call that counts first, then the others in the order in which they began."""
        return sorted(self._calls, key=lambda call: call is not self._counts)

    def _record(self, counts: _Call) -> RoleRecord:
        assert counts.record is not None
        self._counts = counts
        others = [call.record for call in self._ordered() if call is not counts and call.record is not None]
        return RoleRecord.trusted(
            **counts.record.__dict__,
            role=self.role,
            prompt_version=self.prompt.name,
            prompt_sha256=self.prompt.sha256,
            others=others,
        )

    def _nothing(self, outcome: str) -> RoleRecord:
        """Cut off before its first line ran."""
        chosen = self.desk.settings.roles[self.role]
        return RoleRecord(
            role=self.role,
            provider=chosen.provider,
            model_asked=chosen.model,
            outcome=outcome,
            prompt_version=self.prompt.name,
            prompt_sha256=self.prompt.sha256,
        )


def make_ready(askers: Sequence[RoleAsker]) -> None:
    """Ask the guards about the first call of each (all of one panel), and put the money for all aside.

    The money's file takes as long for three calls as for one, and no question leaves before its money is there.
    """
    for asker in askers:
        with contextlib.suppress(Exception):  # it comes again when it asks: then its role abstains
            asker._ready = asker._admitted(*asker._chain[0], asker.desk.monotonic())
    if askers:
        _pay(askers[0].desk, askers[0].purse, [asker._ready for asker in askers if asker._ready is not None])


def _pay(desk: Desk, purse: Purse, calls: Sequence[_Call]) -> None:
    """Put money aside for the calls that the guards let through, and refuse those for which there is none."""
    paid = [call for call in calls if call.refused is None]
    if not paid:
        return
    wanted = [(call.choice.provider, call.amount) for call in paid]
    found: Sequence[Reservation | None] = [None] * len(paid)
    try:
        purse.settle(desk.budget, desk.clock())  # what an earlier model did not use may be what this one needs
        found = desk.budget.reserve_all(wanted, purse.spent, desk.clock(), shadow=paid[0].via == "shadow")
    except Exception as error:  # it concerns all roles, and no fault of the book's may stop the service or cost money
        log.error("no money could be put aside", error=type(error).__name__)
    for call, reserved in zip(paid, found, strict=True):
        call.reserved = reserved
        if reserved is None:
            call.refused = "skipped:budget"
        else:
            purse.spent += call.amount


@dataclass(frozen=True)
class NoModel:
    """A role that is not in the settings."""

    role: Role

    def abstention(self) -> RoleRecord:
        """Always."""
        return self.stopped("skipped:disabled")

    async def ask(self) -> RoleRecord:
        """The same."""
        return self.abstention()

    def stopped(self, outcome: str) -> RoleRecord:
        """An abstention."""
        return RoleRecord(
            role=self.role,
            provider="none",
            model_asked="none",
            outcome=outcome,
            prompt_version="none",
            prompt_sha256="none",
        )


def _day(now_ns: int) -> date:
    return _date(now_ns // DAY_NS)


@functools.lru_cache(4)
def _date(day: int) -> date:
    return date(1970, 1, 1) + timedelta(days=day)
