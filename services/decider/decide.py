"""One opportunity to one decision: admit, rules, panel, final gate. The clock and the askers are passed in.

A decision is always made. No failure of a model, of the budget or of time can make it `execute`.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import StrEnum

import orjson
from pydantic import SecretStr

from services.decider import budget as money
from services.decider import llm, panel, prompt, rules, scoring
from services.decider.budget import Budget, Reservation
from services.decider.panel import PanelResult, Reply
from services.decider.scoring import ROLES
from shared import metrics
from shared.messages import Decision, Mode, Opportunity, Outcome, Panel, Role, RoleRecord, Rules, Score, Tokens
from shared.settings import ModelSettings, Settings

MS = 1_000_000


class Reason(StrEnum):
    """What a decision rests on. Closed list; the panel's own reasons are those of `scoring.Why`."""

    EXPIRED = "expired"  # its time was over before or while it was judged
    TOO_OLD = "too_old"  # detected longer ago than decider.max_age_ms
    CLOSED = "closed"  # the detector closed it
    SILENT = "silent"  # not heard of for decider.max_silence_ms
    EDGE_GONE = "edge_gone"  # its newest numbers do not pass the rules any more
    RULES = "rules"  # the rules said no (or, with rules_only_may_execute, were enough)
    UNKNOWN_NAME = "unknown_name"  # an exchange or symbol that is not in the settings: no model is asked
    NO_KEYS = "no_keys"  # no provider has a key
    NO_TIME = "no_time"  # less than decider.min_useful_ms left
    BUDGET = "budget"  # no role could be paid


class Newest:
    """The newest state of each opportunity that has been read, for the last check. Bounded."""

    def __init__(self, most: int = 20_000) -> None:
        self._held: dict[str, Opportunity] = {}
        self._most = most

    def take(self, opportunity: Opportunity) -> None:
        held = self._held.pop(opportunity.opportunity_id, None)
        if held is not None and held.detected_ns > opportunity.detected_ns:
            opportunity = held
        self._held[opportunity.opportunity_id] = opportunity
        if len(self._held) > self._most:
            del self._held[next(iter(self._held))]

    def get(self, opportunity_id: str) -> Opportunity | None:
        return self._held.get(opportunity_id)


class Models:
    """The clients of the providers that have a key, made once, and what a provider asked us to wait."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        self._settings = settings
        self._clients: dict[str, llm.Client] = {}
        self._not_before_s: dict[str, float] = {}
        for name in {role.provider for role in settings.roles.values()}:
            key: SecretStr | None = settings.providers[name].api_key(environ)
            if key is not None:
                self._clients[name] = llm.make_client(settings.providers[name].base_url, key)

    def any(self) -> bool:
        """Whether any role can be asked at all."""
        return bool(self._clients)

    def client(self, provider: str) -> llm.Client | None:
        return self._clients.get(provider)

    def must_wait(self, provider: str) -> bool:
        return time.monotonic() < self._not_before_s.get(provider, 0.0)

    def wait(self, provider: str, seconds: float) -> None:
        self._not_before_s[provider] = time.monotonic() + seconds

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()


def panel_version(settings: Settings) -> str:
    """Short hash over everything that changes how a decision is made."""
    parts = {
        "roles": {role: chosen.model_dump() for role, chosen in settings.roles.items()},
        "prompts": prompt.SHA256,
        "weights": scoring.WEIGHTS_VERSION,
        "threshold": settings.decider.threshold,
        "rules_only_may_execute": settings.decider.rules_only_may_execute,
    }
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:8]


class Decider:
    """Judges opportunities.

    Args:
        newest: What has been read of each opportunity, also while models think.
        clock: Nanoseconds since the epoch.
    """

    def __init__(
        self, settings: Settings, models: Models, newest: Newest, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._settings = settings
        self._models = models
        self._newest = newest
        self._clock = clock
        self._budget = Budget(settings.decider)
        self._panels = asyncio.Semaphore(settings.decider.max_panels_in_flight)
        self.version = panel_version(settings)

    def decision_id(self, opportunity_id: str) -> str:
        """32 hex digits: the same opportunity and the same panel always give the same."""
        return hashlib.sha256(f"{opportunity_id}|{self.version}".encode()).hexdigest()[:32]

    async def decide(self, opportunity: Opportunity) -> Decision:
        """Always a decision; takes at most the panel's deadline."""
        checked = rules.check(opportunity, self._settings)
        stopped = self._admit(opportunity)
        if stopped is not None:
            return self._decision(opportunity, "hold", "rules_only", stopped, checked)
        if checked.result != "pass":
            outcome: Outcome = "reject" if checked.result == "reject" else "hold"
            return self._decision(opportunity, outcome, "rules_only", Reason.RULES, checked)
        if not prompt.allowed(opportunity, self._settings.exchanges):
            return self._decision(opportunity, "reject", "rules_only", Reason.UNKNOWN_NAME, checked)
        if not self._models.any():
            if self._settings.decider.rules_only_may_execute:
                return self._gated(opportunity, "execute", "rules_only", Reason.RULES, checked)
            return self._decision(opportunity, "hold", "rules_only", Reason.NO_KEYS, checked)
        async with self._panels:
            deadline_ms = self._deadline_ms(opportunity)
            if deadline_ms < self._settings.decider.min_useful_ms:
                return self._decision(opportunity, "hold", "rules_only", Reason.NO_TIME, checked, deadline_ms)
            result = await self._ask(opportunity, deadline_ms)
        if all(record.outcome == "skipped:budget" for record in result.records):
            return self._decision(opportunity, "hold", "rules_only", Reason.BUDGET, checked, deadline_ms, result)
        answered = sum(record.answer is not None for record in result.records)
        mode: Mode = "full" if answered == len(ROLES) else "partial"
        verdict = result.verdict
        return self._gated(opportunity, verdict.outcome, mode, verdict.why, checked, deadline_ms, result)

    # ------------------------------------------------ gates

    def _admit(self, opportunity: Opportunity) -> Reason | None:
        now_ns = self._clock()
        newest = self._newest.get(opportunity.opportunity_id) or opportunity
        if newest.phase == "closed":
            return Reason.CLOSED
        if now_ns >= newest.expires_ns:
            return Reason.EXPIRED
        if now_ns - opportunity.detected_ns > self._settings.decider.max_age_ms * MS:
            return Reason.TOO_OLD
        return None

    def _deadline_ms(self, opportunity: Opportunity) -> int:
        decider = self._settings.decider
        newest = self._newest.get(opportunity.opportunity_id) or opportunity
        left_ms = (newest.expires_ns - self._clock()) // MS - decider.publish_margin_ms
        return max(0, min(decider.panel_deadline_ms, left_ms))

    def _gated(
        self,
        opportunity: Opportunity,
        outcome: Outcome,
        mode: Mode,
        reason: StrEnum,
        checked: Rules,
        deadline_ms: int = 0,
        result: PanelResult | None = None,
    ) -> Decision:
        """The last check, right before publishing: `execute` only on the newest state of the opportunity."""
        if outcome == "execute":
            failed = self._final_gate(opportunity)
            if failed is not None:
                outcome, reason = "hold", failed
        return self._decision(opportunity, outcome, mode, reason, checked, deadline_ms, result)

    def _final_gate(self, opportunity: Opportunity) -> Reason | None:
        now_ns = self._clock()
        newest = self._newest.get(opportunity.opportunity_id) or opportunity
        if newest.phase == "closed":
            return Reason.CLOSED
        if now_ns >= newest.expires_ns:
            return Reason.EXPIRED
        if now_ns - newest.detected_ns > self._settings.decider.max_silence_ms * MS:
            return Reason.SILENT
        if rules.check(newest, self._settings).result != "pass":
            return Reason.EDGE_GONE
        return None

    # ------------------------------------------------ the panel

    async def _ask(self, opportunity: Opportunity, deadline_ms: int) -> PanelResult:
        spent: dict[Role, Reservation] = {}
        decider = self._settings.decider

        def cancelled(role: Role, outcome: str, elapsed_ms: int) -> RoleRecord:
            # Stopped by us: the provider may bill it all the same, so the reservation stands.
            reserved = spent.get(role)
            amount = reserved.amount if reserved is not None else Decimal(0)
            self._count(role, outcome, amount, elapsed_ms)
            return self._record(role, outcome, elapsed_ms, cost_usd=amount)

        askers = {role: self._asker(role, opportunity, spent) for role in ROLES}
        return await panel.run(
            askers,
            cancelled,
            deadline_s=deadline_ms / 1000,
            threshold=decider.threshold,
            p_min=decider.p_edge_min,
        )

    def _asker(self, role: Role, opportunity: Opportunity, spent: dict[Role, Reservation]) -> panel.Asker:
        async def ask() -> Reply:
            chosen = self._settings.roles.get(role)
            if chosen is None:
                return Reply(self._record(role, "skipped:disabled", 0), None)
            client, model = self._models.client(chosen.provider), self._settings.models[chosen.model]
            if client is None:
                return self._skip(role, "skipped:disabled")
            if self._models.must_wait(chosen.provider):
                return self._skip(role, "skipped:not_before")
            question = prompt.question(role, opportunity, self._clock())
            text = prompt.SYSTEM[role] + question
            so_far = sum((reservation.amount for reservation in spent.values()), Decimal(0))
            reservation = self._budget.reserve(money.worst_case(model, text), so_far, self._clock())
            if reservation is None:
                return self._skip(role, "skipped:budget")
            spent[role] = reservation
            began = time.monotonic()
            result = await llm.ask(client, chosen.model, model, prompt.SYSTEM[role], question)
            elapsed_ms = int((time.monotonic() - began) * 1000)
            if result.retry_after_s is not None:
                self._models.wait(chosen.provider, result.retry_after_s)
            return self._reply(role, result, elapsed_ms, model, text, reservation)

        return ask

    def _reply(
        self,
        role: Role,
        result: llm.CallResult,
        elapsed_ms: int,
        model: ModelSettings,
        text: str,
        reservation: Reservation,
    ) -> Reply:
        tokens = money.clamp(model, text, result.usage) if result.billed() else Tokens()
        cost = money.cost(model, tokens)
        self._budget.settle(reservation, cost, self._clock())
        self._count(role, result.outcome, cost, elapsed_ms)
        record = self._record(
            role,
            result.outcome,
            elapsed_ms,
            cost_usd=cost,
            model_reported=result.model_reported,
            fingerprint=result.fingerprint,
            http=result.http,
            request_id=result.request_id,
            tokens=tokens,
            answer=result.answer,
            raw_sha256=result.raw_sha256,
        )
        return Reply(record, result.answer)

    def _skip(self, role: Role, outcome: str) -> Reply:
        self._count(role, outcome, Decimal(0), 0)
        return Reply(self._record(role, outcome, 0), None)

    def _count(self, role: Role, outcome: str, cost: Decimal, elapsed_ms: int) -> None:
        provider = self._settings.roles[role].provider
        metrics.MODEL_CALLS.labels(provider=provider, role=role, outcome=outcome).inc()
        metrics.MODEL_COST_USD.labels(provider=provider).inc(float(cost))
        if elapsed_ms:
            metrics.MODEL_LATENCY_MS.labels(provider=provider).observe(elapsed_ms)

    def _record(self, role: Role, outcome: str, elapsed_ms: int, **known: object) -> RoleRecord:
        chosen = self._settings.roles.get(role)
        return RoleRecord.model_validate(
            {
                "role": role,
                "provider": chosen.provider if chosen is not None else "none",
                "model_asked": chosen.model if chosen is not None else "none",
                "outcome": outcome,
                "latency_ms": elapsed_ms,
                "prompt_version": prompt.version_of(role),
                "prompt_sha256": prompt.SHA256[role],
                **known,
            }
        )

    # ------------------------------------------------ the record

    def _decision(
        self,
        opportunity: Opportunity,
        outcome: Outcome,
        mode: Mode,
        reason: StrEnum,
        checked: Rules,
        deadline_ms: int = 0,
        result: PanelResult | None = None,
    ) -> Decision:
        votes = result.votes if result is not None else dict.fromkeys(ROLES, scoring.ABSTAINED)
        low, high = scoring.interval(votes)
        p_edge, p_low = scoring.pool(votes)
        records = result.records if result is not None else []
        return Decision(
            decision_id=self.decision_id(opportunity.opportunity_id),
            opportunity_id=opportunity.opportunity_id,
            base=opportunity.base,
            outcome=outcome,
            mode=mode,
            reason=reason.value,
            score=Score(low=low, high=high, threshold=self._settings.decider.threshold),
            p_edge=p_edge,
            p_low=p_low,
            rules=checked,
            roles=records,
            panel=Panel(
                version=self.version,
                deadline_ms=deadline_ms,
                elapsed_ms=result.elapsed_ms if result is not None else 0,
                cost_usd=sum((record.cost_usd for record in records), Decimal(0)),
            ),
            buy=opportunity.buy,
            sell=opportunity.sell,
            size=opportunity.size,
            net_bps=opportunity.net_bps,
            profit_usd=opportunity.profit_usd,
            detected_ns=opportunity.detected_ns,
            decided_ns=self._clock(),
            expires_ns=opportunity.expires_ns,
        )
