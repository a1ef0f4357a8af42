"""Recorded answers instead of calls: every record goes through the lines that decide live. Pure.

Under the panel version of the record the same decision must come out, byte for byte: anything else is a fault. Under
other terms it is a what-if: calls are taken to go as they went, and where the record does not hold what the new terms
need, the decision is not known and never guessed.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from services.decider import judge, rules
from services.decider.judge import Case, Terms
from shared.messages import Audit, Decision

DAMAGED = (ValueError, ArithmeticError)
"""What judging a record trips over whose facts do not fit together."""

NOT_ASKED = "no answers recorded: the new terms would ask the panel, which was not asked"
NOT_AWAITED = "no answers recorded: the new terms would wait for a role that was not waited for"
STRANGERS = "no answers recorded: the new terms ask other models or with other prompts"


class Verdict(NamedTuple):
    """What a decision came to."""

    outcome: str
    reason: str

    @classmethod
    def of(cls, decision: Decision) -> "Verdict":
        return cls(decision.outcome, decision.reason)

    def __str__(self) -> str:
        return f"{self.outcome} ({self.reason})"


class Fault(NamedTuple):
    """A decision that does not come out again as it was published, and in what it differs."""

    decision_id: str
    words: str


class NotKnown(Exception):
    """The record does not hold what the new terms need; the words say what is missing."""


# ---------------------------------------------------------------- one record


def again(audit: Audit, terms: Terms) -> Decision:
    """The decision of a record under the terms that made it.

    Raises:
        ValueError: the facts of the record do not fit together.
    """
    try:
        return judge.conclude(judge.case_of(audit), terms)
    except KeyError as error:
        raise ValueError(f"{error} arrived, but has no record") from None
    except DAMAGED as error:
        raise ValueError(str(error) or type(error).__name__) from None


def what_if(audit: Audit, terms: Terms) -> Decision:
    """The decision that other terms would have made of the same calls.

    A shorter deadline cuts off what came after it; the last check is that of the record's moment.

    Raises:
        NotKnown: the record does not hold the answers that it would take.
        ValueError: the facts of the record do not fit together.
    """
    case = judge.case_of(audit)
    if judge.admit(case, rules.check(case.opportunity, terms.settings), terms) is None:
        if case.asked_ns is None and case.cached_from is None:
            raise NotKnown(NOT_ASKED)
        if not _of_this_panel(case, terms):
            raise NotKnown(STRANGERS)
        case = _within(case, judge.deadline_ms(case, terms))
        counted = [role for arrival in case.arrivals for role in arrival.roles]
        if missing := [role for role in counted if role not in case.records]:
            raise ValueError(f"{missing[0]!r} arrived, but has no record")
        if judge.votes_after(case.arrivals, case.records, late=case.late, terms=terms)[1] is None:
            raise NotKnown(NOT_AWAITED)
    try:
        return judge.conclude(case, terms)
    except DAMAGED as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _of_this_panel(case: Case, terms: Terms) -> bool:
    """Whether every call that counts is one that the new terms could make: a model of the role, the same prompt."""
    for role, chosen in terms.settings.roles.items():
        record = case.records.get(role)
        if record is None or record.prompt_sha256 != terms.prompts[role].sha256:
            return False
        if (record.provider, record.model_asked) not in {(one.provider, one.model) for _, one in chosen.choices()}:
            return False
    return set(case.records) <= set(terms.settings.roles)


def _within(case: Case, deadline_ms: int) -> Case:
    """The panel with another deadline: what came later is cut off; what an earlier deadline cut off is not known."""
    if case.asked_ns is None or deadline_ms == case.deadline_ms:
        return case
    if deadline_ms > case.deadline_ms:
        return replace(case, deadline_ms=deadline_ms, late=False)
    arrivals = [arrival for arrival in case.arrivals if arrival.after_ms < deadline_ms]
    return replace(
        case,
        deadline_ms=deadline_ms,
        elapsed_ms=min(case.elapsed_ms, deadline_ms),
        arrivals=arrivals,
        late=case.late or len(arrivals) < len(case.arrivals),
    )


def differences(was: Decision, now: Decision) -> str:
    """Field by field, in one line."""
    before, after = was.model_dump(mode="json"), now.model_dump(mode="json")
    found = [
        f"{name} is {_short(before[name])}, comes out as {_short(after[name])}"
        for name in before
        if before[name] != after[name]
    ]
    return "; ".join(found) or "the same fields in other bytes"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------- all records


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all records. Independent of their order and of duplicates.

    Attributes:
        version: Panel version of the terms.
        records: Different records of all decisions; `duplicates` are copies of these, and are left out.
        decisions: Different decision ids among them.
        repeated: Records beyond the first of their decision: decided again after a crash, with other answers.
        same: Records of this version that come out byte for byte.
        compared: Published decisions that were there, too, and are what came out, byte for byte.
        versions: Records of other versions, by version: the what-if.
        unchanged: Of these, with the same outcome and reason.
        changed: Opportunity ids by what they were and would be, sorted.
        unknown: Opportunity ids by why it is not known, sorted.
        encoded: What came out, sorted by decision id, each id once (the earliest decided).
    """

    version: str
    records: int
    duplicates: int
    decisions: int
    repeated: int
    same: int
    compared: int
    faults: tuple[Fault, ...]
    versions: Mapping[str, int]
    unchanged: int
    changed: Mapping[tuple[Verdict, Verdict], list[str]]
    unknown: Mapping[str, list[str]]
    encoded: tuple[bytes, ...]

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def digest(self) -> str:
        """SHA-256 of what came out, a line each: `sha256sum` of the file that --out writes."""
        return hashlib.sha256(b"".join(value + b"\n" for value in self.encoded)).hexdigest()


@dataclass
class Replay:
    """Takes records one by one, in any order."""

    terms: Terms
    _seen: set[bytes] = field(default_factory=set)
    _duplicates: int = 0
    _ids: Counter[str] = field(default_factory=Counter)
    _same: int = 0
    _faults: set[Fault] = field(default_factory=set)
    _versions: Counter[str] = field(default_factory=Counter)
    _unchanged: int = 0
    _changed: defaultdict[tuple[Verdict, Verdict], set[str]] = field(default_factory=lambda: defaultdict(set))
    _unknown: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _out: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    _came_out: defaultdict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    _published: defaultdict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))

    def take(self, audit: Audit) -> None:
        """Judge one record again."""
        digest = hashlib.sha256(audit.encode()).digest()
        if digest in self._seen:
            self._duplicates += 1
            return
        self._seen.add(digest)
        was = audit.decision
        self._ids[was.decision_id] += 1
        if was.panel.version == self.terms.version:
            self._same_version(audit)
        else:
            self._other_version(audit)

    def published(self, decision_id: str, value: bytes) -> None:
        """A decision as it stands on its topic: it must be what its record gives."""
        self._published[decision_id].add(hashlib.sha256(value).digest())

    def unreadable(self, where: str, words: str) -> None:
        """A record of the topic that is no message of ours."""
        self._faults.add(Fault(where, f"cannot be read: {words}"))

    def _same_version(self, audit: Audit) -> None:
        was = audit.decision
        try:
            now = again(audit, self.terms)
        except ValueError as error:
            self._faults.add(Fault(was.decision_id, f"damaged record: {error}"))
            return
        value = now.encode()
        self._came_out[now.decision_id].add(hashlib.sha256(value).digest())
        self._keep(now, value)
        if value == was.encode():
            self._same += 1
        else:
            self._faults.add(Fault(was.decision_id, differences(was, now)))

    def _other_version(self, audit: Audit) -> None:
        was = audit.decision
        self._versions[was.panel.version] += 1
        try:
            now = what_if(audit, self.terms)
        except NotKnown as missing:
            self._unknown[str(missing)].add(was.opportunity_id)
            return
        except ValueError as error:
            self._faults.add(Fault(was.decision_id, f"damaged record: {error}"))
            return
        self._keep(now, now.encode())
        before, after = Verdict.of(was), Verdict.of(now)
        if before == after:
            self._unchanged += 1
        else:
            self._changed[before, after].add(was.opportunity_id)

    def _keep(self, decision: Decision, value: bytes) -> None:
        mine = (decision.decided_ns, value)
        self._out[decision.decision_id] = min(self._out.get(decision.decision_id, mine), mine)

    def report(self) -> Report:
        """What all records so far came to."""
        both = self._published.keys() & self._came_out.keys()
        faults = self._faults | {
            Fault(name, "published otherwise than its record says")
            for name in both
            if not self._published[name] <= self._came_out[name]
        }
        return Report(
            version=self.terms.version,
            records=len(self._seen),
            duplicates=self._duplicates,
            decisions=len(self._ids),
            repeated=len(self._seen) - len(self._ids),
            same=self._same,
            compared=sum(len(self._published[name] & self._came_out[name]) for name in both),
            faults=tuple(sorted(faults)),
            versions=dict(sorted(self._versions.items())),
            unchanged=self._unchanged,
            changed={change: sorted(self._changed[change]) for change in sorted(self._changed)},
            unknown={why: sorted(self._unknown[why]) for why in sorted(self._unknown)},
            encoded=tuple(value for _, (_, value) in sorted(self._out.items())),
        )


def replay(audits: Iterable[Audit], terms: Terms) -> Report:
    """All records at once."""
    running = Replay(terms)
    for audit in audits:
        running.take(audit)
    return running.report()
