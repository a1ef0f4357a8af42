"""One decision in words, step by step. Pure: what is known of it and the terms of now in, steps out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from services.cli.decisions import replay
from services.cli.decisions.finding import Dossier
from services.cli.explain.words import bps, moment, plain, price, seconds
from services.decider import judge, rules, scoring
from services.decider.judge import Reason, Terms
from services.decider.prompt import NoAnswer, allowed, parse_answer
from services.decider.rules import Code
from services.decider.scoring import PENDING, RANGES, ROLES, Vote, Why
from shared import symbols
from shared.messages import (
    Arrival,
    Audit,
    CallRecord,
    Decision,
    DelayedEdge,
    Leg,
    Opportunity,
    Question,
    Role,
    RoleAnswer,
    RoleRecord,
    Shadow,
)

MS = 1_000_000
KEPT_BYTES = 4096
"""Of a raw text: one of about this size was cut."""

WHY: dict[str, str] = {
    Why.SCORE: "the score reaches the threshold even at its worst, or does not even at its best",
    Why.VETO: "the risk role vetoed",
    Why.RISK: "the risk role does not approve: p_edge below a half, or manipulation high",
    Why.RISK_ABSENT: "the risk role abstained, and nothing is executed without it",
    Why.P_LOW: "the pooled probability, absent roles counted as 0, is below decider.p_edge_min",
    Why.DEADLINE: "time was over before the answers sufficed",
    Reason.EXPIRED: "its time was over before or while it was judged",
    Reason.CLOCK: "it was detected in the future by our clock: one of the clocks is wrong",
    Reason.TOO_OLD: "it had been detected longer ago than decider.max_age_ms",
    Reason.CLOSED: "the detector had closed it",
    Reason.SUPERSEDED: "a newer opportunity of the same route was waiting",
    Reason.SILENT: "it had not been heard of for decider.max_silence_ms",
    Reason.EDGE_GONE: "its newest numbers did not pass the rules any more",
    Reason.RULES: "the rules decided, without models",
    Reason.UNKNOWN_NAME: "an exchange or a symbol is not in the settings: no model is asked about it",
    Reason.NO_KEYS: "no provider has a key",
    Reason.NO_TIME: "less than decider.min_useful_ms was left",
    Reason.BUDGET: "no role could be paid",
    Reason.KILL_SWITCH: "the file named in decider.kill_switch was there",
}
"""What each reason of a decision means."""

ABSENT = {
    "unsure": "the model says itself that it is unsure",
    "invalid": "what came is no answer",
    "refusal": "the model refused",
    "content_filter": "the provider's filter took the answer away",
    "late": "cut off by the deadline",
    "unneeded": "cut off: the verdict stood without it",
    "auth": "the provider refused our key",
    "quota": "no quota or no money is left at the provider",
    "rate_limited": "the provider asked us to wait",
    "bad_request": "the provider refused the request: [models] is wrong about it, or the model is gone",
    "server": "the provider failed",
    "network": "the connection failed",
    "saturated": "all connections were in use",
    "skipped:breaker": "not asked: it has failed or been slow too often lately",
    "skipped:limiter": "not asked: too many calls or tokens a minute",
    "skipped:not_before": "not asked: the provider had asked us to wait",
    "skipped:budget": "not asked: the budget did not allow it",
    "skipped:expired": "not asked: too late for it",
    "skipped:disabled": "not asked: no key, or disabled after refusals",
}
"""Why a role said nothing, by the outcome of its call."""

VIA = {
    "primary": "plays the role",
    "fallback": "fallback",
    "hedge": "hedge: asked beside a slow one",
    "canary": "candidate, stage canary",
    "shadow": "candidate, stage shadow",
}


class Line(NamedTuple):
    """`level` is how far it is indented: 1 or 2."""

    text: str
    level: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the way to the decision."""

    name: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision in words.

    Attributes:
        problems: Where the record contradicts itself: our mistake.
        notes: What is missing, or to be known when reading it.
    """

    decision: Decision
    headline: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    steps: tuple[Step, ...]


def explain(about: Dossier, terms: Terms) -> Explanation:
    """Every step that led to the decision, in order.

    Args:
        terms: Those of now. Limits are named from them; what was decided comes from the record alone.
    """
    decision, audit = about.decision, about.audit
    told = _Told(decision, audit, terms)
    steps = [told.detected(), told.rules(), told.asked(), told.roles(about.shadows), told.decided(), told.last_check()]
    steps += [told.outcome(), afterwards(decision, about.outcomes)]
    return Explanation(decision, told.headline(), told.problems(), tuple(_notes(about, terms)), tuple(steps))


def _notes(about: Dossier, terms: Terms) -> Iterable[str]:
    decision = about.decision
    if about.audit is None:
        yield (
            "its record is missing (decision-audit keeps 7 days): no raw texts, no order of answers, no last check; "
            "this is what the decision itself says"
        )
    if decision.panel.version != terms.version:
        yield (
            f"it was made by panel {decision.panel.version}, the settings of now are panel {terms.version}: limits "
            "below are those of now"
        )
    if about.again:
        yield (
            f"{about.again} more record{'' if about.again == 1 else 's'} of the same id with other content: decided "
            "again after a crash; readers take the first decision"
        )
    for other in about.others:
        yield f"also decided by panel {other.panel.version}: {other.outcome} ({other.reason}), {other.decision_id}"


# ---------------------------------------------------------------- numbers


def why(decision: Decision) -> str:
    """What the reason means; a code that this version does not know as it stands."""
    if decision.reason == Why.SCORE:
        reaches = "reaches the threshold even at its worst"
        return f"the score {reaches if decision.outcome == 'execute' else 'does not reach the threshold'}"
    return WHY.get(decision.reason, decision.reason)


def usd(amount: Decimal) -> str:
    """Costs of calls: at least six decimals, none lost."""
    return f"{amount:.6f} USD" if amount == round(amount, 6) else f"{plain(amount)} USD"


def p_words(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}" if value == round(value, 2) else f"{value:.4f}"


def span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}..{high}"


def score_words(decision: Decision) -> str:
    """The interval and what is needed, in thousandths."""
    return f"{span(decision.score.low, decision.score.high)} of {decision.score.threshold}"


def said(record: RoleRecord) -> str:
    """What a role said in a few words, or the code of why it did not."""
    answer = record.answer
    if answer is None:
        return record.outcome
    p = p_words(answer.p_edge)
    if record.role == "sentiment":
        return f"{answer.view} {p}"
    if record.role == "risk":
        return f"VETO {p}" if answer.veto else f"{'yes' if scoring.affirmative(answer) else 'no'} {p}"
    return f"{p} vol {p_words(answer.volatility)}"


def listed(words: Sequence[str]) -> str:
    """` (a, b)`, or nothing."""
    return f" ({', '.join(words)})" if words else ""


def _ms(from_ns: int, to_ns: int) -> str:
    return f"{(to_ns - from_ns) // MS:,} ms"


def _passes(good: bool) -> str:
    return "passes" if good else "FAILS"


# ---------------------------------------------------------------- the steps


@dataclass(frozen=True, slots=True)
class _Told:
    """One decision, what is recorded of it, and the terms of now."""

    decision: Decision
    audit: Audit | None
    terms: Terms

    @property
    def facts(self) -> Decision | Opportunity:
        """The numbers that were judged; those of a decision to execute are of the last check."""
        return self.decision if self.audit is None else self.audit.opportunity

    def headline(self) -> str:
        d = self.decision
        return (
            f"{d.base}: {d.outcome.upper()} ({d.reason}, mode {d.mode}). Buying on {_market(d.buy)} and selling on "
            f"{_market(d.sell)} was worth {bps(d.net_bps)} bps net, {d.profit_usd:,.2f} USD on {plain(d.size)} "
            f"{d.base}. Why: {why(d)}."
        )

    def problems(self) -> tuple[str, ...]:
        """The record judged again under the version that made it."""
        if self.audit is None or self.decision.panel.version != self.terms.version:
            return ()
        try:
            now = replay.again(self.audit, self.terms)
        except ValueError as error:
            return (f"damaged record: {error}",)
        return () if now.encode() == self.decision.encode() else (replay.differences(self.decision, now),)

    # -------------------------------------------- 1

    def detected(self) -> Step:
        d, audit = self.facts, self.audit
        lines = []
        if audit is None:
            lines.append(f"this state of it was published {moment(d.detected_ns)}; void after {moment(d.expires_ns)}")
        else:
            o = audit.opportunity
            after = "" if o.detected_ns == o.opened_ns else f", {_ms(o.opened_ns, o.detected_ns)} later"
            lines.append(
                f"the gap opened {moment(o.opened_ns)}; this state of it ({o.phase}) was published "
                f"{moment(o.detected_ns)}{after}; void after {moment(o.expires_ns)}"
            )
        lines += self._orders()
        lines.append(f"net {bps(d.net_bps)} bps: {d.profit_usd:,.2f} USD{self._notional()}")
        if audit is not None:
            taken = f"the decider took it up {_ms(audit.opportunity.detected_ns, audit.admitted_ns)} after that"
            lines.append(f"{taken}{self._meanwhile(audit)}")
        return Step("detected", "what was detected", tuple(map(Line, lines)))

    def _notional(self) -> str:
        if self.audit is None:
            return ""
        o = self.audit.opportunity
        loop = "" if o.closed_loop_bps is None else f", closed loop {bps(o.closed_loop_bps)} bps"
        return f" on {o.notional_usd:,.2f} USD; the tops of the books alone {bps(o.naive_bps)} bps{loop}"

    def _orders(self) -> list[str]:
        d = self.facts
        legs = None if self.audit is None else self.audit.opportunity.legs
        if legs:
            return [_order(leg.side, leg, leg.size) for leg in legs]
        sold = None if self.audit is None else self.audit.opportunity.sell_size
        return [_order("buy", d.buy, d.size), _order("sell", d.sell, d.size if sold is None else sold)]

    @staticmethod
    def _meanwhile(audit: Audit) -> str:
        if audit.admitted_closed:
            return "; by then the detector had closed it"
        if audit.admitted_ns >= audit.admitted_expires_ns:
            return "; by then its time was over"
        if audit.superseded:
            return "; by then a newer opportunity of the same route was waiting"
        return f"; then it was good for another {_ms(audit.admitted_ns, audit.admitted_expires_ns)}"

    # -------------------------------------------- 2

    def rules(self) -> Step:
        d, decider, detector = self.facts, self.terms.settings.decider, self.terms.settings.detector
        ages, verdict = (d.buy.alive_age_ms, d.sell.alive_age_ms), self.decision.rules
        book_ms = max(d.buy.book_age_ms, d.sell.book_age_ms)
        notional = "not recorded" if self.audit is None else f"{self.audit.opportunity.notional_usd:,.2f} USD"
        each = {
            Code.NO_PROFIT: f"size {plain(d.size)} {d.base}, profit {d.profit_usd:,.2f} USD: both above 0",
            Code.NET: f"net edge {bps(d.net_bps)} bps: at least {plain(decider.min_net_bps)} (decider.min_net_bps)",
            Code.SANITY: f"and at most {plain(detector.sanity_cap_bps)} (detector.sanity_cap_bps)",
            Code.SILENT: (
                f"last proof of life {ages[0]:,} ms on {d.buy.exchange}, {ages[1]:,} ms on {d.sell.exchange} before: "
                f"at most {decider.max_silence_ms:,} (decider.max_silence_ms)"
            ),
            Code.SKEW: (
                f"skew between them {abs(ages[0] - ages[1]):,} ms: at most {decider.max_skew_ms:,} "
                "(decider.max_skew_ms)"
            ),
            Code.AGE: (
                f"the older book last changed {book_ms:,} ms before: at most {detector.max_book_age_ms:,} "
                "(detector.max_book_age_ms)"
            ),
            Code.LIMIT: f"value {notional}: at most {detector.max_notional_usd:,f} USD (detector.max_notional_usd)",
        }
        broken = set(verdict.codes)
        lines = [Line(f"{text}: {_passes(code.value not in broken)}") for code, text in each.items()]
        unknown = sorted(broken - {code.value for code in Code})
        lines += [Line(f"{code}: FAILS") for code in unknown]
        title = f"the rules: {verdict.result}{listed(verdict.codes)}"
        return Step("rules", title, tuple(lines))

    # -------------------------------------------- 3

    def asked(self) -> Step:
        d, audit = self.decision, self.audit
        lines: list[str] = []
        if d.cached_from is not None:
            title = "the panel: not asked again"
            lines.append(
                f"the answers of a moment ago were used: same route, like numbers, less than decider.verdict_ttl_ms "
                f"({self.terms.settings.decider.verdict_ttl_ms:,} ms) old"
            )
            lines.append(f"asked then: arb decision {d.cached_from}")
        elif not d.roles:
            title = "the panel: not asked"
            lines.append(f"{d.reason}: {why(d)}")
        else:
            title = f"the panel: asked, {d.panel.elapsed_ms:,} of {d.panel.deadline_ms:,} ms taken"
            if audit is not None and audit.asked_ns is not None:
                lines.append(f"asked {_ms(audit.admitted_ns, audit.asked_ns)} after it was taken up")
            lines.append(f"panel {d.panel.version}: roles, prompts, models, weights and limits of that moment")
        if d.roles:
            lines += self._budget()
        return Step("panel", title, tuple(map(Line, lines)))

    def _budget(self) -> list[str]:
        d, decider = self.decision, self.terms.settings.decider
        if d.cached_from is not None:
            return ["budget: nothing spent, it was paid for then"]
        cap = f"at most {plain(decider.max_opportunity_usd)} for an opportunity (decider.max_opportunity_usd)"
        lines = [f"budget: {usd(d.panel.cost_usd)} spent, {cap}"]
        if unpaid := [record.role for record in d.roles if record.outcome == "skipped:budget"]:
            lines.append(f"budget: not enough left to ask {', '.join(unpaid)}; `arb budget` says which cap")
        return lines

    # -------------------------------------------- 4

    def roles(self, shadows: Sequence[Shadow]) -> Step:
        d = self.decision
        records = {record.role: record for record in d.roles}
        questions = {} if self.audit is None else {question.role: question for question in self.audit.questions}
        lines: list[Line] = []
        if not records:
            lines.append(Line("no model was asked"))
        votes: dict[Role, Vote] = dict.fromkeys(ROLES, PENDING)
        arrivals = [] if self.audit is None else self.audit.arrivals
        came: list[Role] = []
        for number, arrival in enumerate(arrivals, 1):
            for role in arrival.roles:
                if role in records and role not in came:
                    came.append(role)
                    votes[role] = judge.vote_of(records[role])
                    lines += self._role(records[role], f"after {arrival.after_ms:,} ms", questions.get(role))
            lines.append(Line(self._score_now(votes, arrivals[:number], records), 1))
        for role in (role for role in ROLES if role in records and role not in came):
            lines += self._role(records[role], "" if self.audit is None else "not counted", questions.get(role))
        if self.audit is not None and self.audit.late and records:
            low, high = d.score.low, d.score.high
            lines.append(Line(f"the deadline ended it: absent roles at their worst, score {span(low, high)}"))
        for shadow in shadows:
            lines += self._role(shadow.call, "in the shadow, never counted", None, shadow.raw)
        return Step("roles", "what each role said, in the order in which answers arrived", tuple(lines))

    def _score_now(self, votes: dict[Role, Vote], arrivals: list[Arrival], records: dict[Role, RoleRecord]) -> str:
        d = self.decision
        words = f"score now {span(*scoring.interval(votes))}, needed {d.score.threshold}"
        if d.panel.version != self.terms.version or any(role not in records for a in arrivals for role in a.roles):
            return words
        found = judge.votes_after(arrivals, records, late=False, terms=self.terms)[1]
        return f"{words}: {'not decided yet' if found is None else f'decided, {found.outcome} ({found.why.value})'}"

    def _role(self, record: RoleRecord, when: str, question: Question | None, raw: str | None = None) -> list[Line]:
        """The call that counts, and the others of its role."""
        raws = list(question.raw) if question is not None else [raw]
        head = f"{record.role}{f', {when}' if when else ''}: "
        if record.answer is None:
            head += f"no answer ({record.outcome}): {ABSENT.get(record.outcome, 'unknown to this version')}"
        else:
            worst, best = RANGES[record.role]
            head += f"{_yes(record.role, record.answer)}, adds {scoring.contribution(record.role, record.answer)} "
            head += f"(of {worst}..{best}){', slow' if record.outcome == 'slow' else ''}"
        lines = [Line(head), Line(_call(record), 2)]
        if record.prompt_version != "none":
            lines.append(Line(f"prompt {record.prompt_version} (sha256 {record.prompt_sha256[:12]})", 2))
        if record.answer is not None:
            lines.append(Line(f"answer: {_answer(record.answer)}", 2))
        lines += self._raw(record, raws[0] if raws else None)
        for place, other in enumerate(record.others, 1):
            got = "an answer, not needed" if other.answer is not None else ABSENT.get(other.outcome, other.outcome)
            lines.append(Line(f"also called: {_call(other)}; {other.outcome}: {got}", 2))
            lines += self._raw(other, raws[place] if place < len(raws) else None)
        return lines

    def _raw(self, call: CallRecord, raw: str | None) -> list[Line]:
        """The text of a call that gave no answer, and why it is none."""
        if call.answer is not None or self.audit is None or self.decision.cached_from is not None:
            return []
        if raw is None:
            return [Line("no text came", 2)] if call.outcome in ("invalid", "refusal", "content_filter") else []
        why = f", no answer because {_no_answer(raw)}" if call.outcome == "invalid" else ""
        return [Line(f"raw text{why}: {raw}", 2)]

    # -------------------------------------------- 5

    def decided(self) -> Step:
        d, decider = self.decision, self.terms.settings.decider
        lines = [Line(f"{d.reason}: {why(d)}")]
        if d.roles:
            lines.append(Line(f"score {score_words(d)} needed (decider.threshold), in thousandths"))
            gate = "asked for" if self.terms.pooling.calibrated else "not asked for before outcomes have calibrated it"
            lines.append(
                Line(
                    f"pooled probability {p_words(d.p_edge)}; p_low {p_words(d.p_low)} with absent roles counted as 0, "
                    f"at least {p_words(decider.p_edge_min)} (decider.p_edge_min) is {gate}"
                )
            )
        elif d.reason == Reason.RULES:
            lines.append(Line(f"rules: {d.rules.result}{listed(d.rules.codes)}"))
        return Step("decided", "what decided", tuple(lines))

    # -------------------------------------------- 6

    def last_check(self) -> Step:
        d, audit = self.decision, self.audit
        title = "the last check, right before publishing"
        if audit is None:
            return Step("check", title, (Line("not recorded"),))
        newest = audit.newest or audit.opportunity
        which = (
            "the same message" if audit.newest is None else f"{newest.phase}, published {moment(newest.detected_ns)}"
        )
        lines = [f"newest state of it: {which}, {_ms(newest.detected_ns, d.decided_ns)} before"]
        if not _was_checked(d, audit):
            return Step("check", title, tuple(map(Line, (*lines, "not needed: only `execute` has to pass it"))))
        limit_ms, checked = self.terms.settings.decider.max_silence_ms, rules.check(newest, self.terms.settings)
        left, known = newest.expires_ns - d.decided_ns, allowed(newest, self.terms.settings.exchanges)
        heard, passed = d.decided_ns - newest.detected_ns <= limit_ms * MS, _passes(checked.result == "pass")
        silent_ms = (d.decided_ns - newest.detected_ns) // MS
        lines += [
            f"kill switch {'on' if audit.killed else 'off'}: {_passes(not audit.killed)}",
            f"not closed by the detector: {_passes(newest.phase != 'closed')}",
            f"time left {left // MS:,} ms: {_passes(left > 0)}",
            f"heard of {silent_ms:,} ms before: at most {limit_ms:,} (decider.max_silence_ms): {_passes(heard)}",
            f"the rules on its newest numbers ({bps(newest.net_bps)} bps net): {passed}{listed(checked.codes)}",
            f"its exchanges and symbols are those of the settings: {_passes(known)}",
        ]
        return Step("check", title, tuple(map(Line, lines)))

    # -------------------------------------------- 7

    def outcome(self) -> Step:
        d = self.decision
        lines = [
            f"{moment(d.decided_ns)}, {seconds((d.decided_ns - d.detected_ns) // MS)} after its numbers were published",
            f"mode {d.mode}, {usd(d.panel.cost_usd)}",
            f"decision {d.decision_id}",
            f"opportunity {d.opportunity_id} (arb explain has its numbers)",
        ]
        if self.audit is not None and self.audit.newest is not None and d.outcome == "execute":
            lines.insert(1, f"published with its newest numbers: {plain(d.size)} {d.base}, {bps(d.net_bps)} bps net")
        if self.audit is not None and d.panel.version == self.terms.version and not self.problems():
            lines.append("its record judged again with the settings of now: the same, byte for byte")
        return Step("outcome", f"the outcome: {d.outcome.upper()}", tuple(map(Line, lines)))


def afterwards(decision: Decision, outcomes: Sequence[DelayedEdge]) -> Step:
    """What the edge was worth later, whether or not it was executed."""
    title = "what became of the edge"
    if not outcomes:
        return Step("afterwards", title, (Line("not known: nothing about it on opportunity-outcomes"),))
    opened_ns = outcomes[0].evaluated_ns - outcomes[0].delay_ms * MS
    lines = [f"decided {_ms(opened_ns, decision.decided_ns)} after it was published as opened; from then on:"]
    for edge in outcomes:
        after = f"{seconds(edge.delay_ms)} after:"
        if edge.missed:
            lines.append(f"{after} nobody could tell")
            continue
        worth = "" if edge.profit_usd is None else f", {edge.profit_usd:,.2f} USD"
        still = "still executable" if edge.executable else "gone"
        lines.append(f"{after} {bps(edge.net_bps)} bps net{worth}: {still}")
    return Step("afterwards", title, tuple(Line(text, min(number, 1) + 1) for number, text in enumerate(lines)))


# ---------------------------------------------------------------- parts


def _was_checked(decision: Decision, audit: Audit) -> bool:
    """Whether the last check was what counted: it executed, or the check held it back."""
    if decision.outcome == "execute":
        return True
    if audit.asked_ns is None and decision.cached_from is None:
        return False
    return decision.reason in (
        Reason.KILL_SWITCH,
        Reason.CLOSED,
        Reason.EXPIRED,
        Reason.SILENT,
        Reason.EDGE_GONE,
        Reason.UNKNOWN_NAME,
    )


def _market(leg: Leg) -> str:
    return f"{leg.exchange} ({leg.symbol})"


def _order(side: str, leg: Leg, size: Decimal) -> str:
    at = "" if leg.vwap is None else f" at {price(leg.vwap)} on average"
    limit = "" if leg.limit is None else f", limit price {price(leg.limit)}"
    fee = "unknown" if leg.fee_bps is None else f"{plain(leg.fee_bps)} bps"
    coin = symbols.base_of(leg.symbol)
    return f"{side} {plain(size)} {coin} on {leg.exchange} {leg.symbol}{at}{limit}, fee {fee}"


def _call(call: CallRecord) -> str:
    """Which model, how long, how much."""
    if call.provider == "none":
        return "no model plays this role"
    parts = [f"{call.model_asked} at {call.provider} ({VIA.get(call.via, call.via)})"]
    if call.outcome.startswith("skipped:"):
        return f"{parts[0]}, not called"
    http = "" if call.http is None else f", HTTP {call.http}"
    parts.append(f"{call.latency_ms:,} ms{http}")
    parts.append(f"tokens {call.tokens.input} in ({call.tokens.cached} cached), {call.tokens.out} out")
    parts.append(usd(call.cost_usd))
    if call.model_reported is not None and call.model_reported != call.model_asked:
        parts.append(f"says that it is {call.model_reported}")
    if call.request_id is not None:
        parts.append(f"request {call.request_id}")
    return ", ".join(parts)


def _yes(role: Role, answer: RoleAnswer) -> str:
    p = f"p {p_words(answer.p_edge)}"
    if role == "sentiment":
        return f"{answer.view}, {p}"
    if role == "risk":
        return (
            f"VETO, {p}" if answer.veto else f"{'approves' if scoring.affirmative(answer) else 'does not approve'}, {p}"
        )
    return f"volatility {p_words(answer.volatility)}, {p}"


def _answer(answer: RoleAnswer) -> str:
    values = {name: value for name, value in answer.model_dump().items() if value is not None and name != "note"}
    words = ", ".join(f"{name} {_word(value)}" for name, value in values.items())
    return f"{words}; note: {answer.note}" if answer.note else words


def _word(value: object) -> str:
    return (
        ("yes" if value else "no")
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _no_answer(raw: str) -> str:
    """Why a text is none, as far as it was kept."""
    try:
        parse_answer(raw)
    except NoAnswer as error:
        cut = " (only its beginning was kept)" if len(raw.encode()) >= KEPT_BYTES - 4 else ""
        return f"{error}{cut}"
    return "the provider did not call it finished"
