"""One scenario from beginning to end."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka import KafkaException

from services.cli.jars import Unsuitable
from shared.errors import ArbiterError
from tools.chaos import ledger, report
from tools.chaos.machine import NotHere
from tools.chaos.report import Result
from tools.chaos.scenarios import Scenario, Settings
from tools.chaos.stage import Stage, Tell

STEADY = 12
"""Opportunities that must be decided before a fault, and again after it."""


def run(
    scenario: Scenario,
    settings: Settings,
    libs: Path,
    logs: Path | None,
    tell: Tell,
    *,
    steady: int = STEADY,
) -> Result:
    """Run it; what goes wrong is in the result.

    Args:
        logs: Folder for its logs; None: they are kept only where something broke.
        steady: See `STEADY`.

    Raises:
        Unsuitable: no Kafka can run here.
    """
    result, began = Result(scenario.name), time.monotonic()
    with _folder(scenario.name, logs) as folder:
        try:
            with contextlib.ExitStack() as stack:
                try:
                    plan, strike = stack.enter_context(scenario.prepare(folder))
                except NotHere as reason:
                    result.skipped = str(reason)
                    return result
                stage = stack.enter_context(Stage(plan, libs, folder, settings.seed, tell, patient=settings.patient))
                try:
                    _act(result, stage, strike, settings, steady)
                finally:
                    result.recoveries = stage.recoveries
                    result.notes = stage.notes
                    result.members = report.members(stage)
                    result.brokers_mib = {name: kib // 1024 for name, kib in stage.brokers_kib.items()}
        except Unsuitable:
            raise
        except Exception as error:  # whatever it was: the other scenarios must still run
            result.failed = _words(error)
        result.seconds = time.monotonic() - began
        shutil.rmtree(folder / "brokers", ignore_errors=True) if result.ok() else None
        if not result.ok() and logs is None:
            result.notes["logs"] = _kept(folder)
    return result


def _act(
    result: Result, stage: Stage, strike: Callable[[Stage, Settings], None], settings: Settings, steady: int
) -> None:
    stage.up()
    try:
        result.before = _steady(stage, "steady, before", steady)
        strike(stage, settings)
        result.after = _steady(stage, "steady, after", steady)
    except (ArbiterError, KafkaException, TimeoutError) as error:  # what was lost by then is still to be told
        result.failed = _words(error)
    records = stage.finish()
    try:
        uncommitted = stage.lag("decider")
    except (KafkaException, TimeoutError):
        uncommitted = None
    accounts = ledger.settle(
        records,
        stage.watch.places(),
        stage.truth(),
        stage.windows,
        stage.since_ns,
        stage.until_ns,
        stage.patience,
    )
    result.recoveries = stage.recoveries
    report.judge(result, stage, accounts, uncommitted)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ArbiterError) else f"{type(error).__name__}: {error}"


def _steady(stage: Stage, doing: str, count: int) -> dict[str, float]:
    stage.doing = doing
    since = time.monotonic()
    stage.until_decided(count)
    now = time.monotonic()
    return {
        "seconds": now - since,
        "gap_s": stage.watch.longest_gap_s(since, now),
        "wait_s": stage.watch.longest_wait_s(since, now),
    }


@contextlib.contextmanager
def _folder(name: str, logs: Path | None) -> Iterator[Path]:
    if logs is not None:
        folder = logs / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=f"arb-chaos-{name}-") as made:
        yield Path(made)


def _kept(folder: Path) -> str:
    """Copies of the logs and of the simulator's log, out of a folder that is about to be removed."""
    kept = Path(tempfile.mkdtemp(prefix=f"{folder.name}-logs-"))
    for path in (*folder.glob("*.log"), *folder.glob("*.jsonl"), *folder.glob("brokers/*.log")):
        shutil.copy(path, kept)
    return str(kept)
