"""One decision and one replay, as a person and as a program read them."""

import unicodedata
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.cli.decisions.finding import Dossier
from services.cli.decisions.replay import Report
from services.cli.decisions.words import Explanation, listed
from services.cli.explain.words import CONTRADICTION
from shared.messages import Question

MOST_IDS = 10

KEPT_MARKS = ("\n",)
"""What is let through of all that steers a terminal."""


def clean(text: str) -> str:
    """Texts of models and providers with what could steer a terminal or turn the writing direction written out."""
    if text.isprintable():
        return text
    return "".join(char if char in KEPT_MARKS or char.isprintable() else _written_out(char) for char in text)


def _written_out(char: str) -> str:
    return " " if unicodedata.category(char) == "Zs" else char.encode("unicode_escape", "surrogatepass").decode()


# ---------------------------------------------------------------- one decision


def decision_value(explained: Explanation, about: Dossier) -> dict[str, Any]:
    """As JSON: the steps in words, and all messages that they are made of."""
    return {
        "decision_id": explained.decision.decision_id,
        "opportunity_id": explained.decision.opportunity_id,
        "outcome": explained.decision.outcome,
        "reason": explained.decision.reason,
        "headline": explained.headline,
        "problems": list(explained.problems),
        "notes": list(explained.notes),
        "steps": [
            {"name": step.name, "title": step.title, "lines": [line.text for line in step.lines]}
            for step in explained.steps
        ],
        "decision": about.decision.model_dump(mode="json"),
        "audit": None if about.audit is None else about.audit.model_dump(mode="json"),
        "shadows": [shadow.model_dump(mode="json") for shadow in about.shadows],
        "outcomes": [edge.model_dump(mode="json") for edge in about.outcomes],
    }


def show_decision(console: Console, explained: Explanation, about: Dossier, *, prompts: bool = False) -> None:
    """For people; `prompts`: also every text that went to a model and came back."""
    _print(console, Text(clean(explained.headline), style="bold"))
    for problem in explained.problems:
        _print(console, Text(clean(f"THIS RECORD CONTRADICTS ITSELF: {problem}."), style="bold red"))
    if explained.problems:
        _print(console, Text(CONTRADICTION, style="red"))
    for note in explained.notes:
        _print(console, Text(clean(f"Note: {note}."), style="yellow"))
    for number, step in enumerate(explained.steps, 1):
        _print(console, Text(clean(f"\n{number}. {step.title}"), style="bold"))
        for line in step.lines:
            _indented(console, clean(line.text).replace("\n", "\\n"), 3 * line.level)
    if prompts:
        _prompts(console, [] if about.audit is None else about.audit.questions)


def _prompts(console: Console, questions: list[Question]) -> None:
    if not questions:
        _print(console, Text("\nno prompts are recorded: no model was asked, or the record is missing", style="dim"))
    for question in questions:
        for name, text in (("system text", question.system), ("user text", question.user)):
            _whole(console, f"{question.role}: {name}", text)
        for number, raw in enumerate(question.raw, 1):
            which = "" if len(question.raw) == 1 else f" of call {number}"
            _whole(console, f"{question.role}: answer{which}", "(no text came)" if raw is None else raw)


def _whole(console: Console, title: str, text: str) -> None:
    _print(console, Text(f"\n{title}", style="bold"))
    for line in clean(text).rstrip("\n").split("\n"):
        _indented(console, line, 3)


def _print(console: Console, text: Text) -> None:
    """Whole words on a terminal; unbroken lines for a file or a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


def _indented(console: Console, line: str, by: int) -> None:
    if console.is_terminal:
        console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, by)), soft_wrap=False)
    else:
        console.print(Text(f"{' ' * by}{line}"))


# ---------------------------------------------------------------- a replay


def replay_value(report: Report) -> dict[str, Any]:
    """As JSON."""
    return {
        "ok": report.ok,
        "version": report.version,
        "records": report.records,
        "duplicates": report.duplicates,
        "decisions": report.decisions,
        "repeated": report.repeated,
        "same": report.same,
        "compared": report.compared,
        "faults": [{"decision_id": fault.decision_id, "words": fault.words} for fault in report.faults],
        "what_if": {
            "versions": dict(report.versions),
            "unchanged": report.unchanged,
            "changed": [
                {"from": before._asdict(), "to": after._asdict(), "count": len(ids), "opportunity_ids": ids}
                for (before, after), ids in report.changed.items()
            ],
            "not_known": [
                {"why": why, "count": len(ids), "opportunity_ids": ids} for why, ids in report.unknown.items()
            ],
        },
        "digest": report.digest,
    }


def show_replay(console: Console, report: Report) -> None:
    """For people."""
    records = f"{_counted(report.records, 'record')} of {_counted(report.decisions, 'decision')}"
    apart = [f"{_counted(report.duplicates, 'duplicate')} left out"] if report.duplicates else []
    apart += [f"{report.repeated:,} decided again"] if report.repeated else []
    _print(console, Text(f"{records}{listed(apart)}; panel of now: {report.version}"))
    judged = report.records - sum(report.versions.values())
    if judged:
        style = "bold green" if report.ok else "bold red"
        _print(
            console, Text(f"{report.same:,} of {judged:,} come out byte for byte as they were published", style=style)
        )
    if report.compared:
        _print(console, Text(f"{report.compared:,} of them were held against what stands on ai-trading-decisions"))
    for fault in report.faults[:MOST_IDS]:
        _print(console, Text(clean(f"FAULT {fault.decision_id}: {fault.words}"), style="red"))
    if len(report.faults) > MOST_IDS:
        _print(console, Text(f"... and {len(report.faults) - MOST_IDS:,} more faults (--json has all)", style="red"))
    if report.versions:
        _what_if(console, report)
    _print(console, Text(f"digest {report.digest}"))


def _what_if(console: Console, report: Report) -> None:
    count = sum(report.versions.values())
    of = ", ".join(f"{version} ({number:,})" for version, number in report.versions.items())
    console.print(
        Text(f"\nwhat if: {_counted(count, 'record')} of other panels judged by the panel of now", style="bold")
    )
    _print(console, Text(clean(f"made by panel {of}")))
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("was", overflow="fold")
    table.add_column("would be", overflow="fold")
    table.add_column("count", justify="right")
    table.add_row("any", "the same", f"{report.unchanged:,}")
    for (before, after), ids in report.changed.items():
        table.add_row(Text(clean(str(before))), Text(clean(str(after))), f"{len(ids):,}")
    for why, ids in report.unknown.items():
        table.add_row("any", f"not known: {why}", f"{len(ids):,}")
    console.print(table, soft_wrap=False)
    changed = sorted(name for ids in report.changed.values() for name in ids)
    if changed:
        _print(console, Text("opportunities that change: `arb decision ID` tells what was decided"))
        for name in changed[:MOST_IDS]:
            _print(console, Text(clean(f"   {name}")))
        if len(changed) > MOST_IDS:
            _print(console, Text(f"   ... and {len(changed) - MOST_IDS:,} more (--json has all)"))
    console.print()


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
