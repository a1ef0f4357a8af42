"""`arb doctor`: what is wrong, and what mends it.

`gather` asks (the shell), `kafka`, `outside` and `here` judge what was heard (pure), `show` prints it. It changes
nothing: no record is written, no model is asked a question, no symbol is subscribed.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from services.cli.doctor.finding import Finding, Part, Result
from shared import process, settings
from shared.errors import SettingsError, UsageError

WIDEST = 10_000
"""Columns where nobody looks: a line of a pipe is not folded."""


def command(
    only: Annotated[
        str | None, typer.Option(metavar="PART,PART", help=f"Look only at these: {', '.join(Part)}.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask neither exchanges nor providers of models.")] = False,
    service: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Also ask this service whether it is ready, whatever --only says (repeatable)."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for all of it.", min=1, max=300)] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file; default: ARB_CONFIG, else ./arb.toml, else defaults."),
    ] = None,
) -> None:
    """What is wrong, and what mends it: settings, Kafka, ticks, exchanges, clock, keys, budget, disk. Changes nothing.

    Ends 0 if nothing is wrong (there may be warnings), 1 if something is, 2 if the settings (those for Kafka's client,
    too) cannot be used, 3 if no broker answers. docs/doctor.md explains it.
    """
    from services.cli.doctor import gather, here, show

    parts = chosen(only)
    process.setup_logging(settings.LogSettings(level="error", json=False))
    out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDEST)
    err = Console(stderr=True, highlight=False)
    try:
        loaded = settings.load(config)
    except SettingsError as error:
        _print(out, [here.not_loaded(str(error))], as_json=as_json)
        raise typer.Exit(2) from None
    asked = gather.Asked(parts, offline, timeout, tuple(service or ()))
    with err.status("looking") as status:
        examining = gather.examine(loaded, asked, say=lambda names: status.update(f"waiting for {', '.join(names)}"))
        findings = _run(examining)
    if Part.SETTINGS in parts:
        files = [str(file) for file in settings.files_of(config)]
        findings.insert(0, here.loaded(files, here.used_variables(os.environ)))
    _print(out, findings, as_json=as_json)
    code = show.exit_code(findings)
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # a name that is being resolved cannot be cancelled
    raise typer.Exit(code)


def chosen(only: str | None) -> tuple[Part, ...]:
    """Parts of `--only`.

    Raises:
        UsageError: there is no such part.
    """
    if only is None:
        return tuple(Part)
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(Part)]
    if unknown or not names:
        raise UsageError(f"--only {', '.join(unknown) or only!r}: no such part; there are {', '.join(Part)}")
    return tuple(Part(name) for name in names)


def _run(examining: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    """As `asyncio.run`, without waiting for its threads."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(examining)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _print(console: Console, findings: Sequence[Finding], *, as_json: bool) -> None:
    from services.cli.doctor import show

    if as_json:
        print(orjson.dumps(show.as_value(findings)).decode())  # noqa: T201
    else:
        show.show(console, findings)


__all__ = ["Finding", "Part", "Result", "chosen", "command"]
