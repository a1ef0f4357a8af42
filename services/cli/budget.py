"""`arb budget`: what models have cost, what is left, and which candidates were rolled back."""

import datetime
from decimal import Decimal
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.decider.budget import Budget, Spent
from services.decider.state import Candidate, Rollback, State, state_file
from shared.errors import SettingsError, UsageError
from shared.settings import Settings

CLOCKS_NS = 2_000_000_000
"""A book so little ahead of this clock is being written right now."""


def run(settings: Settings, forgive: str | None, now_ns: int, as_json: bool, stdout: Console) -> bool:
    """Print it; False if a rollback was to be forgiven and there is none.

    Only looks into the file, and leaves it missing where it is: except with `forgive`, which takes out that role's
    rollbacks.

    Raises:
        UsageError: `forgive` is no role.
        SettingsError: the file is damaged, no file of ours, or cannot be read or changed.
    """
    if forgive is not None and forgive not in settings.roles:
        raise UsageError(f"--forgive {forgive!r}: no such role; there are {', '.join(settings.roles)}")
    file = state_file(settings)
    try:
        exists = file.exists()
    except OSError as error:  # a folder that this user may not enter
        raise SettingsError(f"decider.state_file: {file}: {error.strerror}") from None
    forgiven: dict[Candidate, Rollback] = {}
    if forgive is not None and exists:
        with State(file) as state:
            forgiven = state.clear_rollback(forgive)
    with State(file, read_only=True) if exists else State(None) as state:
        spent, rolled_back = Budget(settings, state).spent(now_ns), state.rolled_back()
    if as_json:
        document = {
            "file": str(file.absolute()),
            "exists": exists,
            "day_ends": _time(spent.day_ends_ns),
            "booked_until": _time(spent.booked_until_ns) if _ahead(spent, now_ns) else None,
            "call_cap_usd": _usd(spent.call_cap),
            "opportunity_cap_usd": _usd(spent.opportunity_cap),
            "caps": _caps(spent),
            "rolled_back": _candidates(rolled_back),
            "forgiven": _candidates(forgiven),
        }
        print(orjson.dumps(document).decode())  # noqa: T201
    else:
        _print(stdout, spent, now_ns)
        _print_candidates(stdout, rolled_back, forgive, forgiven)
        there = "" if exists else " (does not exist yet: no decider has run with it)"
        stdout.print(f"file: {escape(str(file.absolute()))}{there}")
    return forgive is None or bool(forgiven)


def _caps(spent: Spent) -> list[dict[str, str]]:
    lines = {"minute": spent.minute, "day": spent.day, "shadow": spent.shadow}
    lines |= {f"provider {name}": line for name, line in spent.providers.items()}
    return [
        {"name": name, "spent_usd": _usd(line.spent), "cap_usd": _usd(line.cap), "left_usd": _usd(line.left)}
        for name, line in lines.items()
    ]


def _candidates(rollbacks: dict[Candidate, Rollback]) -> list[dict[str, Any]]:
    return [
        {"role": role, "provider": provider, "model": model, "at": _time(rollback.at_ns), "why": rollback.why}
        for (role, provider, model), rollback in sorted(rollbacks.items())
    ]


def _print(console: Console, spent: Spent, now_ns: int) -> None:
    table = Table("cap", box=None)
    for name in ("spent USD", "cap USD", "left USD"):
        table.add_column(name, justify="right")
    for row in _caps(spent):
        table.add_row(escape(row["name"]), row["spent_usd"], row["cap_usd"], row["left_usd"])
    console.print(table)
    console.print(
        f"also: {_usd(spent.call_cap)} USD a call, {_usd(spent.opportunity_cap)} USD an opportunity; "
        f"the day ends at {_time(spent.day_ends_ns)}; minute and day are without shadow, providers with it"
    )
    if _ahead(spent, now_ns):
        console.print(
            f"the book is ahead of the clock, which was set back: what stands there up to "
            f"{_time(spent.booked_until_ns)} counts until then. If that clock was wrong, stop the deciders and move "
            "the file away"
        )


def _print_candidates(
    console: Console, rolled_back: dict[Candidate, Rollback], forgive: str | None, forgiven: dict[Candidate, Rollback]
) -> None:
    for one in _candidates(rolled_back):
        console.print(
            escape(
                f"rolled back: {one['role']} {one['provider']} {one['model']} at {one['at']}: {one['why']} "
                f"(arb budget --forgive {one['role']})"
            )
        )
    for one in _candidates(forgiven):
        console.print(
            escape(
                f"forgiven: {one['role']} {one['provider']} {one['model']}, rolled back at {one['at']}: {one['why']}. "
                "Deciders may ask it again"
            )
        )
    if forgive is not None and not forgiven:
        console.print(f"nothing to forgive: no candidate for {forgive} was rolled back")


def _ahead(spent: Spent, now_ns: int) -> bool:
    return spent.booked_until_ns > now_ns + CLOCKS_NS


def _usd(amount: Decimal) -> str:
    return format(amount, "f")


def _time(ns: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(ns // 1_000_000_000, datetime.UTC)
    except (OverflowError, ValueError, OSError):  # a clock that no calendar knows
        return f"{ns // 1_000_000_000} s after 1970"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
