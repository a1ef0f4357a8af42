"""What a run says: tables for people, a dict for the JSON file."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.chaos.ledger import Accounts
from tools.chaos.stage import KILLED, Recovery, Stage

MOST_MIB = {"collector": 256, "detector": 512, "decider": 512}
"""Limits in docker-compose.yml, by what a service's name begins with."""

BACK_S = 60.0
"""So long after a fault has ended everything must be as before."""

SHOWN = 3
WORST = 12


@dataclass
class Check:
    """One thing that must hold."""

    what: str
    must: str
    found: str
    ok: bool


@dataclass
class Result:
    """One scenario. `skipped`: why it did not run; `failed`: what ended it before its end."""

    name: str
    seconds: float = 0.0
    skipped: str | None = None
    failed: str | None = None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    recoveries: list[Recovery] = field(default_factory=list)
    accounts: Accounts | None = None
    checks: list[Check] = field(default_factory=list)
    members: list[dict[str, Any]] = field(default_factory=list)
    brokers_mib: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def ok(self) -> bool:
        return self.failed is None and all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ok": self.ok()}


def judge(result: Result, stage: Stage, accounts: Accounts, uncommitted: int | None) -> None:
    """Fill the result in, with every check. `uncommitted` is None where the brokers did not say."""
    result.accounts = accounts

    def none(what: str, found: Sequence[object] | int, words: str = "") -> None:
        count = found if isinstance(found, int) else len(found)
        few = "" if isinstance(found, int) or not count else ": " + ", ".join(map(str, found[:SHOWN]))
        result.checks.append(Check(what, "0", f"{count}{few}{words}", count == 0))

    none("decisions lost", accounts.undecided, f" of {accounts.opened}")
    none("opportunities lost: known, but never opened on the topic", accounts.headless)
    none("records that a reader saw and that are gone", accounts.vanished)
    missed = [f"{gap['base']} {gap['buy']['exchange']} to {gap['sell']['exchange']}" for gap in accounts.missed]
    none("gaps missed while nothing was broken", missed, f" of {accounts.gaps}")
    invented = [f"{one} ({ms} ms)" for one, ms in zip(accounts.invented, accounts.invented_ms, strict=True)]
    none("opportunities invented while nothing was broken", invented)
    none("decisions whose copies say something else", accounts.contradictions)
    none("records that cannot be read, dead letters", accounts.undecodable + accounts.dead_letters)
    behind = "not known" if uncommitted is None else str(uncommitted)
    result.checks.append(Check("messages not committed by the deciders at the end", "0", behind, uncommitted == 0))
    for what, count in stage.musts:
        none(what, count)
    late = max((one.steady_s for one in result.recoveries), default=0.0)
    most_s = BACK_S * stage.patience
    result.checks.append(Check("longest until all was as before", f"{most_s:g} s", f"{late:.1f} s", late < most_s))
    own = [f"{m.name} {code} ({words})" for m in stage.members.values() for code, words in m.own_ends]
    none("services that ended by themselves", own)
    none("services that did not stop well", stage.problems)
    for kind, most_mib in MOST_MIB.items():
        most = max((m for m in stage.members.values() if m.name.startswith(kind)), key=lambda member: member.peak_kib)
        peak = most.peak_kib // 1024
        result.checks.append(
            Check(f"most memory of a {kind}", f"{most_mib} MiB", f"{peak} MiB, {most.name}", peak < most_mib)
        )


def members(stage: Stage) -> list[dict[str, Any]]:
    """One row a service."""
    return [
        {
            "service": member.name,
            "killed": member.ends.count(KILLED),
            "ended by itself": len(member.own_ends),
            "exit codes": ", ".join(code for code in member.ends if code != KILLED),
            "peak MiB": member.peak_kib // 1024,
        }
        for member in stage.members.values()
    ]


def show(console: Console, result: Result) -> None:
    """The tables of one scenario."""
    verdict = "skipped" if result.skipped else "holds" if result.ok() else "BROKEN"
    console.print(f"\n{result.name}: {verdict} ({result.seconds:.0f} s)", style="bold", highlight=False)
    if result.skipped:
        console.print(f"  {result.skipped}", markup=False)
        return
    if result.failed:
        console.print(f"  {result.failed}", markup=False, soft_wrap=True)
    if result.checks:
        verdicts = {True: "ok", False: "BROKEN"}
        rows = [{"check": c.what, "must be": c.must, "found": c.found, "": verdicts[c.ok]} for c in result.checks]
        _table(console, "", rows)
    if result.recoveries:
        _table(console, "Faults (s)", [_recovery(one) for one in _worst(result.recoveries)])
        if len(result.recoveries) > WORST:
            console.print(f"the {WORST} worst of {len(result.recoveries)}", highlight=False)
    if (found := result.accounts) is not None:
        console.print(
            f"{found.opened} opportunities, {found.decided} decided ({_counted(found.outcomes)}; "
            f"{_counted(found.modes)}); again: {found.opened_again} openings, {found.decided_again} decisions by id, "
            f"{found.two_decisions} by another id; {found.found} of {found.gaps} gaps found; while broken: "
            f"{found.excused} missed, {found.invented_broken} invented; {found.unfinished} without an end",
            highlight=False,
        )
    if result.after:
        console.print(
            f"longest without a decision: {result.before['gap_s']:.1f} s before, {result.after['gap_s']:.1f} s after; "
            f"longest wait for one: {result.before['wait_s']:.1f} s before, {result.after['wait_s']:.1f} s after",
            highlight=False,
        )
    for what, note in result.notes.items():
        console.print(f"{what}: {note}", markup=False, highlight=False)
    if result.members:
        _table(console, "Services", result.members)
        words = ", ".join(f"{name} {mib} MiB" for name, mib in sorted(result.brokers_mib.items()))
        console.print(f"peak of the brokers: {words}", highlight=False)


def _worst(found: Sequence[Recovery]) -> list[Recovery]:
    if len(found) <= WORST:
        return list(found)
    return sorted(found, key=lambda one: one.gap_s, reverse=True)[:WORST]


def _recovery(one: Recovery) -> dict[str, str]:
    return {
        "fault": one.what,
        "lasted": f"{one.lasted_s:.1f}",
        "decisions again": "-" if one.flowing_s is None else f"{one.flowing_s:.1f}",
        "all as before": f"{one.steady_s:.1f}",
        "longest without decision": f"{one.gap_s:.1f}",
        "longest wait": f"{one.wait_s:.1f}",
    }


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _table(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title or None, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="right" if isinstance(value, int) else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table, markup=False)


def summary(console: Console, results: Sequence[Result]) -> None:
    """One line a scenario."""
    rows = []
    for one in results:
        found = one.accounts
        lost = len(found.headless) + len(found.vanished) + len(found.missed) if found else 0
        rows.append(
            {
                "scenario": one.name,
                "verdict": "skipped" if one.skipped else "holds" if one.ok() else "BROKEN",
                "opportunities": str(found.opened) if found else "-",
                "decisions lost": str(len(found.undecided)) if found else "-",
                "opportunities lost": str(lost) if found else "-",
                "twice by id": str(found.opened_again + found.decided_again) if found else "-",
                "longest without decision s": f"{max((r.gap_s for r in one.recoveries), default=0):.1f}",
                "as before after s": f"{max((r.steady_s for r in one.recoveries), default=0):.1f}",
                "peak MiB": str(max((row["peak MiB"] for row in one.members), default=0)),
            }
        )
    console.print()
    _table(console, "Chaos", rows)
