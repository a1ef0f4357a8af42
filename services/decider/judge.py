"""From all that is known of one opportunity to one decision. Pure: live and in a replay the same lines decide.

A decision is always made. No failure of a model, of the budget or of time can make it `execute`.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

import orjson

from services.decider import prompt, rules, scoring
from services.decider.prompt import Prompt
from services.decider.scoring import ABSTAINED, PENDING, ROLES, Answered, Pooling, Verdict, Vote
from shared.messages import (
    Arrival,
    Audit,
    Decision,
    Mode,
    Opportunity,
    Outcome,
    Panel,
    Question,
    Role,
    RoleRecord,
    Rules,
    Score,
    Tokens,
)
from shared.settings import Settings
from shared.weights import Weights

MS = 1_000_000
AHEAD_NS = 2_000 * MS
"""How far a detector's clock may be ahead of ours before nothing is executed by it."""

NOT_OF_THE_PANEL = {"state_file", "weights_file", "kill_switch", "probe", "ping_s"}
"""Settings of `[decider]` that change no decision."""

OF_AN_ANSWER = {"name", "structured", "token_param", "request", "request_if_refused", "max_out", "timeout_ms"}
"""Settings of a model that may change what it answers."""


class Reason(StrEnum):
    """What a decision rests on. Closed list; the panel's own reasons are those of `scoring.Why`."""

    EXPIRED = "expired"  # its time was over before or while it was judged
    CLOCK = "clock"  # detected in the future by our clock: one of the clocks is wrong
    TOO_OLD = "too_old"  # detected longer ago than decider.max_age_ms
    CLOSED = "closed"  # the detector closed it
    SUPERSEDED = "superseded"  # a newer opportunity of the same route was waiting
    SILENT = "silent"  # not heard of for decider.max_silence_ms
    EDGE_GONE = "edge_gone"  # its newest numbers do not pass the rules any more
    RULES = "rules"  # the rules said no (or, with rules_only_may_execute, were enough)
    UNKNOWN_NAME = "unknown_name"  # an exchange or symbol that is not in the settings: no model is asked
    NO_KEYS = "no_keys"  # no provider has a key
    NO_TIME = "no_time"  # less than decider.min_useful_ms left
    BUDGET = "budget"  # no role could be paid
    KILL_SWITCH = "kill_switch"  # the file named in decider.kill_switch is there


class Count(NamedTuple):
    """What the votes come to: the score, the pooled probability, and it with who is absent counted as 0."""

    score: Score
    p_edge: float | None
    p_low: float


@dataclass(frozen=True)
class Terms:
    """What decisions are made by: settings, prompts and what outcomes say of the models."""

    settings: Settings
    prompts: dict[Role, Prompt]
    pooling: Pooling
    version: str

    @classmethod
    def of(cls, settings: Settings, weights: Weights | None = None) -> "Terms":
        """Raises SettingsError: a prompt that does not exist, or is of another role."""
        prompts = {role: prompt.load(chosen.prompt) for role, chosen in settings.roles.items()}
        for role, found in prompts.items():
            prompt.require_role(found, role, found.name)
        asked = {choice.model for chosen in settings.roles.values() for _, choice in chosen.choices()}
        parts = {
            "roles": {role: chosen.model_dump(mode="json") for role, chosen in settings.roles.items()},
            "models": {name: settings.models[name].model_dump(mode="json", include=OF_AN_ANSWER) for name in asked},
            "prompts": {role: found.sha256 for role, found in prompts.items()},
            "contributions": scoring.WEIGHTS_VERSION,
            "weights": None if weights is None else weights.digest(),
            "decider": settings.decider.model_dump(mode="json", exclude=NOT_OF_THE_PANEL),
            "watched": {name: sorted(exchange.symbols) for name, exchange in settings.exchanges.items()},
            "sanity_cap_bps": str(settings.detector.sanity_cap_bps),
            "max_book_age_ms": settings.detector.max_book_age_ms,
            "max_notional_usd": str(settings.detector.max_notional_usd),
        }
        version = hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:8]
        return cls(settings, prompts, Pooling.of(settings, weights), version)

    def count(self, votes: Mapping[Role, Vote]) -> Count:
        """What these votes come to."""
        low, high = scoring.interval(votes)
        p_edge, p_low = self.pooling.pool(votes)
        return Count(Score.trusted(low=low, high=high, threshold=self.settings.decider.threshold), p_edge, p_low)

    # Nearly all of a backlog is decided without the panel: what is the same in each is made once, it was a third of
    # what making a decision takes.

    @functools.cached_property
    def silence(self) -> Count:
        """What it comes to when nobody has said anything."""
        return self.count(dict.fromkeys(ROLES, ABSTAINED))

    @functools.cached_property
    def no_panel(self) -> Panel:
        """Of a decision that was made without it."""
        return Panel.trusted(version=self.version, deadline_ms=0, elapsed_ms=0, cost_usd=Decimal(0))

    def decision_id(self, opportunity_id: str) -> str:
        """32 hex digits: the same opportunity and the same panel always give the same."""
        return hashlib.sha256(f"{opportunity_id}|{self.version}".encode()).hexdigest()[:32]


@dataclass(slots=True)
class Case:
    """One opportunity on its way to a decision, with every fact that the decision rests on.

    Attributes are those of `messages.Audit`; `records` by role, of the panel or (`cached_from`) of an earlier one.
    `terms` are those that it began with, also if others count for new cases meanwhile, and `checked` what the rules of
    those terms say; None: out of a record. `raw` is the opportunity as it was read.
    """

    opportunity: Opportunity
    admitted_ns: int
    admitted_closed: bool
    admitted_expires_ns: int
    keys: bool
    killed: bool = False
    superseded: bool = False
    asked_ns: int | None = None
    deadline_ms: int = 0
    elapsed_ms: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    late: bool = False
    records: dict[Role, RoleRecord] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    cached_from: str | None = None
    newest: Opportunity | None = None
    decided_ns: int = 0
    terms: Terms | None = None
    checked: Rules | None = None
    raw: bytes | None = None


class Stopped(NamedTuple):
    """Why there is a decision without the panel."""

    outcome: Outcome
    reason: StrEnum


def route_of(opportunity: Opportunity) -> tuple[str, ...]:
    """What makes two opportunities rivals: the same orders on the same exchanges."""
    if not opportunity.legs:
        buy, sell = opportunity.buy, opportunity.sell
        return opportunity.base, buy.exchange, buy.symbol, sell.exchange, sell.symbol
    return (opportunity.base, *(text for leg in opportunity.legs for text in (leg.side, leg.exchange, leg.symbol)))


def regime(opportunity: Opportunity) -> tuple[object, ...]:
    """A coarse picture of the numbers: with the same one, answers of a moment ago still hold."""
    context = opportunity.context
    volatility = 0 if context.volatility_bps_1m is None else int(context.volatility_bps_1m).bit_length()
    size = max(1, int(opportunity.notional_usd)).bit_length()
    return math.floor(opportunity.net_bps / 5), opportunity.limited_by, volatility, size


def deadline_ms(case: Case, terms: Terms) -> int:
    """How long the panel may take."""
    decider = terms.settings.decider
    left_ms = (case.admitted_expires_ns - case.admitted_ns) // MS - decider.publish_margin_ms
    return max(0, min(decider.panel_deadline_ms, left_ms))


def admit(case: Case, checked: Rules, terms: Terms) -> Stopped | None:
    """Whether the panel need not be asked."""
    decider = terms.settings.decider
    if case.admitted_closed:
        return Stopped("hold", Reason.CLOSED)
    if case.admitted_ns >= case.admitted_expires_ns:
        return Stopped("hold", Reason.EXPIRED)
    if case.opportunity.detected_ns - case.admitted_ns > AHEAD_NS:
        return Stopped("hold", Reason.CLOCK)
    if case.admitted_ns - case.opportunity.detected_ns > decider.max_age_ms * MS:
        return Stopped("hold", Reason.TOO_OLD)
    if case.superseded:
        return Stopped("hold", Reason.SUPERSEDED)
    if checked.result != "pass":
        return Stopped("reject" if checked.result == "reject" else "hold", Reason.RULES)
    if case.killed and case.asked_ns is None and case.cached_from is None:  # later it is the last check's
        return Stopped("hold", Reason.KILL_SWITCH)
    if not prompt.allowed(case.opportunity, terms.settings.exchanges):
        return Stopped("reject", Reason.UNKNOWN_NAME)
    if not case.keys:
        return Stopped("execute" if decider.rules_only_may_execute else "hold", _no_keys(terms))
    if case.cached_from is None and deadline_ms(case, terms) < decider.min_useful_ms:
        return Stopped("hold", Reason.NO_TIME)
    return None


def _no_keys(terms: Terms) -> Reason:
    return Reason.RULES if terms.settings.decider.rules_only_may_execute else Reason.NO_KEYS


def gate(newest: Opportunity, now_ns: int, killed: bool, terms: Terms) -> Reason | None:
    """The last check, right before publishing: `execute` only on the newest state of the opportunity."""
    if killed:
        return Reason.KILL_SWITCH
    if newest.phase == "closed":
        return Reason.CLOSED
    if now_ns >= newest.expires_ns:
        return Reason.EXPIRED
    if newest.detected_ns - now_ns > AHEAD_NS:
        return Reason.CLOCK
    if now_ns - newest.detected_ns > terms.settings.decider.max_silence_ms * MS:
        return Reason.SILENT
    if rules.check(newest, terms.settings).result != "pass":
        return Reason.EDGE_GONE
    if not prompt.allowed(newest, terms.settings.exchanges):
        return Reason.UNKNOWN_NAME
    return None


def vote_of(record: RoleRecord) -> Vote:
    """An abstention, or the answer and whose it is."""
    return ABSTAINED if record.answer is None else Answered(record.answer, record.model_asked)


def votes_after(
    arrivals: Iterable[Arrival], records: dict[Role, RoleRecord], *, late: bool, terms: Terms
) -> tuple[dict[Role, Vote], Verdict | None]:
    """The votes at the end of the panel, and what they decided: arrivals in their order, until it is certain."""
    decider, pooling = terms.settings.decider, terms.pooling
    votes: dict[Role, Vote] = dict.fromkeys(ROLES, PENDING)
    found: Verdict | None = None
    for arrival in arrivals:
        for role in arrival.roles:
            votes[role] = vote_of(records[role])
        found = scoring.verdict(votes, decider.threshold, decider.p_edge_min, pooling, deadline=False)
        if found is not None:
            break
    if found is None and late:
        found = scoring.verdict(votes, decider.threshold, decider.p_edge_min, pooling, deadline=True)
        votes = {role: ABSTAINED if vote == PENDING else vote for role, vote in votes.items()}
    return votes, found


def conclude(case: Case, terms: Terms) -> Decision:
    """The decision.

    Raises:
        ValueError: the case says that the panel was asked, but nothing in it ends the panel (a damaged record).
    """
    checked = case.checked or rules.check(case.opportunity, terms.settings)
    stopped = admit(case, checked, terms)
    mode: Mode = "rules_only"
    outcome: Outcome
    reason: StrEnum
    if stopped is not None:
        outcome, reason = stopped
        count = terms.silence
    else:
        votes, found = votes_after(case.arrivals, case.records, late=case.late, terms=terms)
        if found is None:
            raise ValueError("the panel has not come to an end")
        outcome, reason, count = found.outcome, found.why, terms.count(votes)
        if case.cached_from is not None:
            mode = "cached"
        elif case.records and all(record.outcome == "skipped:budget" for record in case.records.values()):
            outcome, reason = "hold", Reason.BUDGET
        else:
            answered = sum(isinstance(vote, Answered) for vote in votes.values())
            mode = "full" if answered == len(ROLES) else "partial"
    if outcome == "execute":
        failed = gate(case.newest or case.opportunity, case.decided_ns, case.killed, terms)
        if failed is not None:
            outcome, reason = "hold", failed
    return _decision(case, outcome, mode, reason, checked, count, terms)


def _decision(
    case: Case,
    outcome: Outcome,
    mode: Mode,
    reason: StrEnum,
    checked: Rules,
    count: Count,
    terms: Terms,
) -> Decision:
    # `execute` is about what the last check has seen: the size that was there when it opened may be gone.
    facts = case.newest or case.opportunity if outcome == "execute" else case.opportunity
    records = [case.records[role] for role in ROLES if role in case.records] if case.records else []
    panel = terms.no_panel
    if records or case.deadline_ms or case.elapsed_ms:
        panel = Panel.trusted(
            version=terms.version,
            deadline_ms=case.deadline_ms,
            elapsed_ms=case.elapsed_ms,
            cost_usd=sum((cost_of(record) for record in records), Decimal(0)),
        )
    return Decision.trusted(  # of parts that are valid: validating them again is half of a decision's time
        decision_id=terms.decision_id(case.opportunity.opportunity_id),
        opportunity_id=case.opportunity.opportunity_id,
        base=case.opportunity.base,
        outcome=outcome,
        mode=mode,
        reason=reason.value,
        score=count.score,
        p_edge=count.p_edge,
        p_low=count.p_low,
        rules=checked,
        roles=records,
        panel=panel,
        buy=facts.buy,
        sell=facts.sell,
        size=facts.size,
        net_bps=facts.net_bps,
        profit_usd=facts.profit_usd,
        detected_ns=facts.detected_ns,
        decided_ns=case.decided_ns,
        expires_ns=facts.expires_ns,
        cached_from=case.cached_from,
    )


def cost_of(record: RoleRecord) -> Decimal:
    """USD for all calls of the role."""
    return sum((other.cost_usd for other in record.others), record.cost_usd)


def reused(record: RoleRecord) -> RoleRecord:
    """The answer of an earlier panel: it was paid for then."""
    return record.changed(cost_usd=Decimal(0), tokens=Tokens(), latency_ms=0, others=[])


def audit(case: Case, decision: Decision) -> Audit:
    """The case as it goes to `decision-audit`."""
    changed = case.newest is not None and case.newest is not case.opportunity
    return Audit(
        decision=decision,
        opportunity=case.opportunity,
        newest=case.newest if changed else None,
        admitted_ns=case.admitted_ns,
        admitted_closed=case.admitted_closed,
        admitted_expires_ns=case.admitted_expires_ns,
        superseded=case.superseded,
        killed=case.killed,
        keys=case.keys,
        asked_ns=case.asked_ns,
        arrivals=case.arrivals,
        late=case.late,
        questions=case.questions,
    )


def audited(case: Case, decision: bytes) -> bytes:
    """What `audit` gives, encoded; the decision and the opportunity are not encoded again, they are the most of it."""
    raw = case.raw if case.raw is not None and b"\n" not in case.raw else case.opportunity.encode()
    changed = case.newest is not None and case.newest is not case.opportunity
    return orjson.dumps(
        {
            "kind": "audit",
            "v": 1,
            "decision": orjson.Fragment(decision),
            "opportunity": orjson.Fragment(raw),
            "newest": orjson.Fragment(case.newest.encode()) if changed and case.newest is not None else None,
            "admitted_ns": case.admitted_ns,
            "admitted_closed": case.admitted_closed,
            "admitted_expires_ns": case.admitted_expires_ns,
            "superseded": case.superseded,
            "killed": case.killed,
            "keys": case.keys,
            "asked_ns": case.asked_ns,
            "arrivals": [arrival.model_dump() for arrival in case.arrivals],
            "late": case.late,
            "questions": [question.model_dump() for question in case.questions],
        }
    )


def case_of(audit: Audit) -> Case:
    """The case again, out of its record."""
    decision = audit.decision
    return Case(
        opportunity=audit.opportunity,
        admitted_ns=audit.admitted_ns,
        admitted_closed=audit.admitted_closed,
        admitted_expires_ns=audit.admitted_expires_ns,
        keys=audit.keys,
        killed=audit.killed,
        superseded=audit.superseded,
        asked_ns=audit.asked_ns,
        deadline_ms=decision.panel.deadline_ms,
        elapsed_ms=decision.panel.elapsed_ms,
        arrivals=audit.arrivals,
        late=audit.late,
        records={record.role: record for record in decision.roles},
        questions=audit.questions,
        cached_from=decision.cached_from,
        newest=audit.newest,
        decided_ns=decision.decided_ns,
    )
