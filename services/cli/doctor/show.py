"""Findings for people and for programs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.doctor.finding import Finding, Part, Result

_MARKS = {
    Result.OK: "[green]ok[/]",
    Result.WARN: "[yellow]warn[/]",
    Result.FAIL: "[bold red]FAIL[/]",
    Result.SKIPPED: "[dim]--[/]",
}


def exit_code(findings: Sequence[Finding]) -> int:
    """2 if Kafka's client does not take the settings, 3 if no broker answers, 1 if something is wrong, else 0."""
    wrong = [one for one in findings if one.result == Result.FAIL]
    if any(one.part == Part.KAFKA and one.check == "options" for one in wrong):
        return 2
    if any(one.part == Part.KAFKA and one.check == "broker" for one in wrong):
        return 3
    return 1 if wrong else 0


def as_value(findings: Sequence[Finding]) -> dict[str, Any]:
    """For `--json`."""
    counts = Counter(one.result for one in findings)
    return {
        "ok": not counts[Result.FAIL],
        "counts": {result.value: counts[result] for result in Result},
        "findings": [one._asdict() for one in findings],
    }


def show(console: Console, findings: Sequence[Finding]) -> None:
    """A line for each, a fix below what needs one, and the sum."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    before = None
    for one in findings:
        if one.part != before:
            if before is not None:
                table.add_row()
            table.add_row(f"[bold]{one.part}[/]")
            before = one.part
        table.add_row(f"  {_MARKS[one.result]}", escape(one.check), escape(one.words))
        if one.fix:
            table.add_row("", "", f"[bold]fix:[/] {escape(one.fix)}")
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.out(line.rstrip(), highlight=False)  # a table fills its lines with blanks
    counts = Counter(one.result for one in findings)
    parts = [f"{counts[Result.OK]} ok", f"{counts[Result.WARN]} to look at", f"{counts[Result.FAIL]} wrong"]
    if counts[Result.SKIPPED]:
        parts.append(f"{counts[Result.SKIPPED]} not looked at")
    console.print(f"\n{', '.join(parts)}")
