"""Decisions joined to what became of their opportunities: a card for each model, and the panel as a whole. Pure.

Nothing here depends on the order in which messages come.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Literal, NamedTuple, get_args

from services.cli.report import Held, opened_ns
from services.cli.scorecard import forecasts
from services.cli.scorecard.forecasts import Bin, Estimate, Forecast
from shared.messages import CallRecord, Decision, DelayedEdge, Outcome, Role, RoleRecord, Shadow, Via
from shared.weights import MIN_OUTCOMES, Entry, Weights, weight_of

CLUSTER_NS = 60_000_000_000
"""Opportunities that opened within the same minute are not independent: markets move together."""

ANSWERS = ("ok", "slow")

DIGITS = 6
"""Of what is saved."""

Key = tuple[Role, str, str]
"""Role, model, version of the prompt."""

Reason = Literal["none", "no_outcomes", "unseen", "not_asked", "few", "chance", "better", "worse"]


# ---------------------------------------------------------------- what is kept of the messages


class Call(NamedTuple):
    """One call of a model, or why none was made. `p` is None where it is no answer; then `why` says what it was."""

    role: Role
    model: str
    prompt_version: str
    via: Via
    why: str
    p: float | None
    latency_ms: int
    cost_usd: Decimal

    @property
    def key(self) -> Key:
        return self.role, self.model, self.prompt_version

    @property
    def skipped(self) -> bool:
        return self.why.startswith("skipped:")


class Judged(NamedTuple):
    """A decision. `calls` is empty where an earlier panel's answers were used again; `asked`: models had a say."""

    decided_ns: int
    decision_id: str
    opportunity_id: str
    detected_ns: int
    outcome: Outcome
    cached: bool
    asked: bool
    p_edge: float | None
    notional_usd: Decimal | None
    calls: tuple[Call, ...]

    @property
    def cost_usd(self) -> Decimal:
        return _total(call.cost_usd for call in self.calls)


class Tried(NamedTuple):
    """What a candidate on trial did beside a decision."""

    asked_ns: int
    decision_id: str
    opportunity_id: str
    call: Call


def judged(decision: Decision) -> Judged:
    """What counts of a decision."""
    cached = decision.mode == "cached" or decision.cached_from is not None
    calls: list[Call] = []
    for record in [] if cached else decision.roles:
        calls += [_call(record, one) for one in (record, *record.others)]
    return Judged(
        decided_ns=decision.decided_ns,
        decision_id=decision.decision_id,
        opportunity_id=decision.opportunity_id,
        detected_ns=decision.detected_ns,
        outcome=decision.outcome,
        cached=cached,
        asked=any(not record.outcome.startswith("skipped:") for record in decision.roles),
        p_edge=None if cached else decision.p_edge,
        notional_usd=_notional(decision),
        calls=tuple(calls),
    )


def tried(shadow: Shadow) -> Tried:
    """What counts of a candidate's answer."""
    call = _call(shadow.call, shadow.call)._replace(via="shadow")
    return Tried(shadow.asked_ns, shadow.decision_id, shadow.opportunity_id, call)


def _call(record: RoleRecord, one: CallRecord) -> Call:
    answer = one.answer if one.outcome in ANSWERS else None
    unsure = answer is not None and answer.code == "UNSURE"
    why = "unsure" if unsure else one.outcome
    p = None if answer is None or unsure else answer.p_edge
    return Call(record.role, one.model_asked, record.prompt_version, one.via, why, p, one.latency_ms, one.cost_usd)


def _notional(decision: Decision) -> Decimal | None:
    """What the order would have cost, by its own profit and edge; None where there is none."""
    if decision.net_bps <= 0 or decision.profit_usd <= 0:
        return None
    with localcontext(prec=60):
        return decision.profit_usd * 10_000 / decision.net_bps


def _total(amounts: Iterable[Decimal]) -> Decimal:
    with localcontext(prec=60):
        return sum(amounts, Decimal(0))


# ---------------------------------------------------------------- what became of it


def label(outcome: DelayedEdge) -> int | None:
    """1: it could still be done with a profit; 0: not; None: nobody saw."""
    if outcome.missed:
        return None
    return int(outcome.executable and outcome.net_bps is not None and outcome.net_bps > 0)


def worth_usd(decision: Judged, outcome: DelayedEdge) -> Decimal | None:
    """What executing would have brought, in USD; None: nobody can tell.

    Where something was executable: `profit_usd`. Where nothing was, that is 0 by definition, which would make executing
    a gap that is gone free. So it is priced by the tops of the books at that moment, at the size of the decision:
    `net_bps / 10,000 * notional`, a loss. What lies behind the tops is not counted, so the real loss is larger. An edge
    above 0 that is too small for an order brings nothing.
    """
    if outcome.missed or outcome.net_bps is None:
        return None
    if outcome.executable:
        return outcome.profit_usd
    if outcome.net_bps >= 0:
        return Decimal(0)
    if decision.notional_usd is None:
        return None
    with localcontext(prec=60):
        return outcome.net_bps * decision.notional_usd / 10_000


# ---------------------------------------------------------------- cards


@dataclass(frozen=True, slots=True)
class Card:
    """One model in one role with one version of its prompt.

    Attributes:
        vias: How often it was called as what.
        calls, needed, answers: All; without those skipped or called off; those with an answer.
        abstained: Why there was no answer, how often; skipped and called off ones, too.
        n: Answers whose outcome is known. The fields after it are of these, None (or empty) where there are none.
        useful: Of these, answers on the right side of a half.
        ece, chance: Calibration error, and about what somebody calibrated would have by chance.
        p50_ms, p95_ms: Of the calls that were needed, late ones with the time that they had. None: there was none.
        cost_usd: Of all calls; `known_cost_usd` of those whose outcome is known.
    """

    role: Role
    model: str
    prompt_version: str
    vias: tuple[tuple[Via, int], ...]
    calls: int
    needed: int
    answers: int
    abstained: tuple[tuple[str, int], ...]
    p50_ms: int | None
    p95_ms: int | None
    cost_usd: Decimal
    known_cost_usd: Decimal
    n: int
    useful: int
    base_rate: float | None
    mean_p: float | None
    brier: Estimate | None
    bss: Estimate | None
    ece: float | None
    chance: float | None
    bins: tuple[Bin, ...]
    calibration: tuple[tuple[float, float], ...]

    @property
    def key(self) -> Key:
        return self.role, self.model, self.prompt_version

    @property
    def on_trial(self) -> bool:
        """It has only been asked beside others: nothing rests on its answers."""
        return all(via == "shadow" for via, _ in self.vias)

    @property
    def valid(self) -> float | None:
        """Share of the calls needed that were answered."""
        return self.answers / self.needed if self.needed else None

    @property
    def cost_per_answer(self) -> Decimal | None:
        return self.cost_usd / self.answers if self.answers else None

    @property
    def cost_per_useful(self) -> Decimal | None:
        return self.known_cost_usd / self.useful if self.useful else None

    @property
    def weight(self) -> float | None:
        """What it will weigh; None: no outcome is known."""
        return None if self.bss is None else weight_of(self.bss.value, self.n)

    @property
    def followed(self) -> bool:
        """Enough outcomes for the decider to follow."""
        return self.n >= MIN_OUTCOMES


class Row(NamedTuple):
    call: Call
    y: int | None
    cluster: int


def _card(key: Key, rows: Sequence[Row]) -> Card:
    calls = [row.call for row in rows]
    needed = [call for call in calls if not call.skipped and call.why != "unneeded"]
    known = [Forecast(row.call.p, row.y, row.cluster) for row in rows if row.call.p is not None and row.y is not None]
    vias = Counter(call.via for call in calls)
    why = Counter(call.why for call in calls if call.p is None)
    times = [call.latency_ms for call in needed]
    found = forecasts.bins(known) if known else ()
    return Card(
        *key,
        vias=tuple((via, vias[via]) for via in get_args(Via) if vias[via]),
        calls=len(calls),
        needed=len(needed),
        answers=sum(call.p is not None for call in calls),
        abstained=tuple(sorted(why.items(), key=lambda item: (-item[1], item[0]))),
        p50_ms=forecasts.quantile(times, 0.5) if times else None,
        p95_ms=forecasts.quantile(times, 0.95) if times else None,
        cost_usd=_total(call.cost_usd for call in calls),
        known_cost_usd=_total(row.call.cost_usd for row in rows if row.y is not None),
        n=len(known),
        useful=sum((one.p > 0.5) if one.y else (one.p < 0.5) for one in known),
        base_rate=forecasts.base_rate(known) if known else None,
        mean_p=forecasts.mean([(one.p, one.cluster) for one in known]).value if known else None,
        brier=forecasts.brier(known) if known else None,
        bss=forecasts.skill(known) if known else None,
        ece=forecasts.calibration_error(found) if known else None,
        chance=forecasts.chance_error(found) if known else None,
        bins=found,
        calibration=tuple(forecasts.calibration(known)) if known else (),
    )


# ---------------------------------------------------------------- the panel


class Fate(NamedTuple):
    """Decisions of one outcome: how many, of how many it is known what came, how many of those still paid."""

    outcome: Outcome
    n: int
    known: int
    paid: int


@dataclass(frozen=True, slots=True)
class Gain:
    """What the panel brought beside another way to decide, over decisions that can be priced.

    Attributes:
        n: Decisions.
        panel_usd: Of what the panel executed; `other_usd` of what the other would have.
        cost_usd: Of the models.
        mean_usd: `(panel_usd - other_usd - cost_usd) / n`, with its interval.
    """

    n: int
    panel_usd: Decimal
    other_usd: Decimal
    cost_usd: Decimal
    mean_usd: Estimate

    @property
    def total_usd(self) -> Decimal:
        return self.panel_usd - self.other_usd - self.cost_usd


@dataclass(frozen=True, slots=True)
class Pool:
    """The pooled probability that decisions were published with, as a forecast."""

    n: int
    brier: Estimate
    bss: Estimate


@dataclass(frozen=True, slots=True)
class Panel:
    """All decisions.

    Attributes:
        decisions: Each once; `duplicates` are further records of one.
        cached: Those made of an earlier panel's answers.
        known, missed, without: Whose outcome at the horizon was seen, was missed, or was never published.
        asked: Those known in which models had a say.
        late: Those known that were made after the horizon.
        unpriced: Those known of which nobody can tell what executing would have brought.
        over_rule: Beside executing all that the models were asked about: it had passed the rules.
        over_yes: Beside executing every opportunity that was judged.
        cost_usd: Of all calls.
    """

    decisions: int
    duplicates: int
    cached: int
    known: int
    missed: int
    without: int
    asked: int
    late: int
    unpriced: int
    fates: tuple[Fate, ...]
    over_rule: Gain | None
    over_yes: Gain | None
    pool: Pool | None
    cost_usd: Decimal


class Known(NamedTuple):
    """A decision and the outcome of its opportunity."""

    decision: Judged
    outcome: DelayedEdge
    y: int

    @property
    def cluster(self) -> int:
        return opened_ns(self.outcome) // CLUSTER_NS


def _gain(known: Sequence[Known]) -> Gain | None:
    """Beside executing all of them."""
    executed: list[Decimal] = []
    every: list[Decimal] = []
    costs: list[Decimal] = []
    values: list[tuple[float, int]] = []
    for one in known:
        worth = worth_usd(one.decision, one.outcome)
        if worth is None:
            continue
        got = worth if one.decision.outcome == "execute" else Decimal(0)
        cost = one.decision.cost_usd
        executed.append(got)
        every.append(worth)
        costs.append(cost)
        values.append((float(got - worth - cost), one.cluster))
    if not values:
        return None
    return Gain(len(values), _total(executed), _total(every), _total(costs), forecasts.mean(values))


def _pool(known: Sequence[Known]) -> Pool | None:
    said = [Forecast(one.decision.p_edge, one.y, one.cluster) for one in known if one.decision.p_edge is not None]
    return Pool(len(said), forecasts.brier(said), forecasts.skill(said)) if said else None


def _panel(
    decisions: Sequence[Judged], outcomes: dict[str, DelayedEdge], known: Sequence[Known], duplicates: int
) -> Panel:
    missed = sum(one.opportunity_id in outcomes for one in decisions) - len(known)
    return Panel(
        decisions=len(decisions),
        duplicates=duplicates,
        cached=sum(one.cached for one in decisions),
        known=len(known),
        missed=missed,
        without=len(decisions) - len(known) - missed,
        asked=sum(one.decision.asked for one in known),
        late=sum(one.decision.decided_ns > one.outcome.evaluated_ns for one in known),
        unpriced=sum(worth_usd(one.decision, one.outcome) is None for one in known),
        fates=tuple(
            Fate(
                outcome,
                sum(one.outcome == outcome for one in decisions),
                sum(one.decision.outcome == outcome for one in known),
                sum(one.y for one in known if one.decision.outcome == outcome),
            )
            for outcome in get_args(Outcome)
        ),
        over_rule=_gain([one for one in known if one.decision.asked]),
        over_yes=_gain(known),
        pool=_pool(known),
        cost_usd=_total(one.cost_usd for one in decisions),
    )


# ---------------------------------------------------------------- all of it


@dataclass(frozen=True, slots=True)
class Scorecard:
    """All numbers. `first_ns` and `last_ns` are of the decisions (detected); None if there are none."""

    horizon_ms: int
    first_ns: int | None
    last_ns: int | None
    cards: tuple[Card, ...]
    panel: Panel

    @property
    def reason(self) -> Reason:
        """Whether the models added value, or why nobody can tell."""
        panel = self.panel
        if not panel.decisions:
            return "none"
        if not panel.known:
            return "unseen" if panel.missed else "no_outcomes"
        if not panel.asked:
            return "not_asked"
        gain = panel.over_rule
        if gain is None or gain.n < MIN_OUTCOMES:
            return "few"
        match gain.mean_usd.sign:
            case 1:
                return "better"
            case -1:
                return "worse"
        return "chance"

    @property
    def good(self) -> bool:
        return self.reason == "better"

    def weights(self, made_ns: int) -> Weights | None:
        """For the decider; None if no outcome of any answer is known."""
        entries = [entry_of(card) for card in self.cards if card.n]
        if not entries or self.first_ns is None or self.last_ns is None:
            return None
        return Weights(
            horizon_ms=self.horizon_ms,
            since_ns=self.first_ns,
            until_ns=self.last_ns,
            made_ns=made_ns,
            entries=entries,
        )


def entry_of(card: Card) -> Entry:
    """A card with outcomes, as it is saved."""
    assert card.brier is not None
    assert card.bss is not None
    assert card.base_rate is not None
    assert card.weight is not None
    return Entry(
        role=card.role,
        model=card.model,
        prompt_version=card.prompt_version,
        n=card.n,
        base_rate=round(card.base_rate, DIGITS),
        brier=round(card.brier.value, DIGITS),
        bss=round(card.bss.value, DIGITS),
        weight=round(card.weight, DIGITS),
        calibration=list(card.calibration),
    )


def newest(held: Iterable[Held], horizon_ms: int) -> dict[str, DelayedEdge]:
    """The outcome of each opportunity at the horizon: of several records the newest."""
    found: dict[str, Held] = {}
    for one in held:
        if one.outcome.delay_ms == horizon_ms:
            before = found.get(one.outcome.opportunity_id)
            if before is None or (one.rank, one.outcome.encode()) > (before.rank, before.outcome.encode()):
                found[one.outcome.opportunity_id] = one
    return {identity: one.outcome for identity, one in found.items()}


def score(
    decisions: Iterable[Judged],
    trials: Iterable[Tried],
    held: Iterable[Held],
    horizon_ms: int,
    since_ns: int | None = None,
) -> Scorecard:
    """Join and count. Each decision counts once, as it was published first, and so does each answer.

    Args:
        since_ns: Only opportunities detected from then on (of a trial: asked from then on).
    """
    first: dict[str, Judged] = {}
    records = 0
    for one in decisions:
        if since_ns is not None and one.detected_ns < since_ns:
            continue
        records += 1
        before = first.get(one.decision_id)
        if before is None or _order(one) < _order(before):
            first[one.decision_id] = one
    outcomes = newest(held, horizon_ms)
    labels = {identity: label(outcome) for identity, outcome in outcomes.items()}
    unique = sorted(first.values(), key=lambda one: (one.detected_ns, one.decision_id))
    known = [
        Known(one, outcomes[one.opportunity_id], y)
        for one in unique
        if (y := labels.get(one.opportunity_id)) is not None
    ]
    rows: dict[Key, list[Row]] = defaultdict(list)
    answered: set[tuple[str, Key]] = set()

    def take(decision_id: str, opportunity_id: str, call: Call) -> None:
        if call.model == "none":  # the role is switched off
            return
        if call.p is not None:
            if (decision_id, call.key) in answered:  # the same model twice, at two providers: one opinion
                call = call._replace(p=None, why="unneeded")
            answered.add((decision_id, call.key))
        outcome = outcomes.get(opportunity_id)
        cluster = 0 if outcome is None else opened_ns(outcome) // CLUSTER_NS
        rows[call.key].append(Row(call, labels.get(opportunity_id), cluster))

    for one in unique:
        for call in one.calls:
            take(one.decision_id, one.opportunity_id, call)
    seen: set[tuple[str, Key]] = set()
    for trial in sorted(trials, key=lambda trial: (trial.asked_ns, trial.decision_id, repr(trial.call))):
        place = (trial.decision_id, trial.call.key)
        if place not in seen and (since_ns is None or trial.asked_ns >= since_ns):
            seen.add(place)
            take(trial.decision_id, trial.opportunity_id, trial.call)
    roles = get_args(Role)
    return Scorecard(
        horizon_ms=horizon_ms,
        first_ns=unique[0].detected_ns if unique else None,
        last_ns=unique[-1].detected_ns if unique else None,
        cards=tuple(
            sorted(
                (_card(key, those) for key, those in rows.items()),
                key=lambda card: (roles.index(card.role), card.on_trial, -card.calls, card.model, card.prompt_version),
            )
        ),
        panel=_panel(unique, outcomes, known, records - len(unique)),
    )


def _order(one: Judged) -> tuple[int, str]:
    return one.decided_ns, repr(one)
