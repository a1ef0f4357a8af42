"""`python -m tools.chaos`: break a cluster of three brokers and the services on it, and count what is lost."""

import datetime
import logging
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import structlog
import typer
from rich.console import Console
from rich.status import Status

from services.cli import jars
from shared.errors import ArbiterError, UsageError
from tools.chaos import machine, report
from tools.chaos.report import Result
from tools.chaos.run import run
from tools.chaos.scenarios import SCENARIOS, Settings

RESULTS = Path("benchmarks") / "results" / "chaos.json"

OFTEN_S = 20.0

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
stdout = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


@app.command(epilog="Exit codes: 0 everything held, 1 a must was broken, 2 wrong usage, 3 no Kafka can run here.")
def main(
    only: Annotated[list[str] | None, typer.Option(help="Only this scenario (may be repeated).")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Say what there is, and end.")] = False,
    minutes: Annotated[float, typer.Option(help="How long the scenario `kills` kills.", min=0.1)] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of the market and of what is killed when.")] = 1,
    patient: Annotated[
        bool, typer.Option("--patient", help="On a machine with other work: brokers are given up later, all may last.")
    ] = False,
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go.")] = RESULTS,
    keep_logs: Annotated[
        Path | None, typer.Option(help="Folder for all logs; default: only those of a broken scenario are kept.")
    ] = None,
) -> None:
    """Break a cluster of three real brokers and the services on it, scenario by scenario, and count what is lost.

    Each scenario starts three Kafka nodes as processes, a simulated market and the real services, waits until all is
    steady, breaks something, waits until all is steady again, and compares what is on the topics with what a reader
    saw and with the simulator's own log. What needs root (disk, network) is skipped where it is not allowed. Ctrl-C
    ends it; nothing stays behind. About 25 minutes with --minutes 10. docs/chaos.md says what is counted how.
    """
    if list_them:
        for one in SCENARIOS.values():
            stdout.print(f"{one.name:12} {one.about}", markup=False)
        return
    if unknown := sorted(set(only or ()) - SCENARIOS.keys()):
        raise UsageError(f"--only {', '.join(unknown)}: no such scenario; there are {', '.join(SCENARIOS)}")
    chosen = [SCENARIOS[name] for name in dict.fromkeys(only or SCENARIOS)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's end takes all down, as Ctrl-C does
    # Lost connections are what is wanted here: they are not for the screen.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    machine.remove_left()
    libs = jars.fetch(lambda words: stderr.print(f"chaos: {words}", markup=False))
    results: list[Result] = []
    settings = Settings(minutes, seed, patient)
    try:
        with stderr.status("starting") as status:
            for scenario in chosen:
                tell = Teller(scenario.name, status)
                results.append(run(scenario, settings, libs, keep_logs, tell))
                report.show(stdout, results[-1])
    except KeyboardInterrupt:
        stderr.print("chaos: stopped", markup=False)
        raise typer.Exit(130) from None
    finally:
        if results:
            report.summary(stdout, results)
            _write(json_file, settings, results)
    raise typer.Exit(0 if all(one.ok() for one in results) else 1)


class Teller:
    """What goes on: as a line that changes on a terminal, else a line for each phase and now and then."""

    def __init__(self, name: str, status: Status) -> None:
        self._name = name
        self._status = status
        self._last = ("", 0.0)

    def __call__(self, doing: str, words: str) -> None:
        now, (before, at) = time.monotonic(), self._last
        if stderr.is_terminal:
            self._status.update(f"{self._name}: {doing}; {words}")
        elif doing != before or now - at > OFTEN_S:
            self._last = (doing, now)
            stderr.print(f"{self._name}: {doing} ({words})", markup=False)


def _write(file: Path, settings: Settings, results: list[Result]) -> None:
    document: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": settings.minutes,
        "seed": settings.seed,
        "patient": settings.patient,
        "scenarios": [one.as_dict() for one in results],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=list) + b"\n")
    stderr.print(f"chaos: everything in {file}", markup=False)


if __name__ == "__main__":
    try:
        app()
    except ArbiterError as error:
        stderr.print(f"chaos: {error}", markup=False)
        sys.exit(error.exit_code)
