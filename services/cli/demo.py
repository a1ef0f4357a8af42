"""`arb demo`: everything on this machine, as processes, and a screen that shows what they publish."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.live import Live

from services.cli.board import Board, Report
from services.cli.broker import Broker, start_broker
from services.cli.jars import tied_to_parent
from services.cli.screen import render, save_picture
from services.cli.watch import line
from shared import cluster, kafka, topics
from shared.errors import DependencyMissing, UndecodableRecord
from shared.messages import Decision, decode
from shared.settings import PREFIX, KafkaSettings, Settings

START_S = 30.0
"""Everything must be up within this time."""

STOP_S = 10.0
KEY_VARIABLE = "DEMO_MODEL_KEY"
"""The variable that the demo's services read the simulator's key from: real keys never reach the simulator."""

WATCHED = [*topics.tick_topics(), topics.FX_RATES, topics.OPPORTUNITIES, topics.REJECTIONS, topics.DECISIONS]


class Services:
    """The processes of one run, each with its log."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment = environment
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start `arb ARGUMENTS`, by way of the command `prefix`; what it says is added to NAME.log."""
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                tied_to_parent([*prefix, sys.executable, "-m", "services.cli", *arguments]),
                env={**self._environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C must reach us first: they are stopped in order
            )
        self._processes[name] = process
        return process

    def failed(self) -> list[str]:
        """Those that ended by themselves, with their last words."""
        return [
            f"{name} ended with {process.returncode}: {self.last_words(name)}"
            for name, process in self._processes.items()
            if process.poll() is not None
        ]

    def stop(self, *names: str) -> list[str]:
        """End these (all still running if none is named) by SIGTERM; returns what did not end well."""
        chosen = {name: p for name, p in self._processes.items() if not names or name in names}
        for process in chosen.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        problems = []
        deadline = time.monotonic() + STOP_S + 5.0
        for name, process in chosen.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                problems.append(f"{name} did not stop within {STOP_S + 5:g} s and was killed")
            if process.stdout is not None:
                process.stdout.close()
            if process.returncode not in (0, -signal.SIGKILL):
                problems.append(f"{name} ended with {process.returncode}: {self.last_words(name)}")
            del self._processes[name]
        return problems

    def last_words(self, name: str) -> str:
        """The last line of its log."""
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"


def simulated(where: Mapping[str, Any], settings: Settings, folder: Path) -> dict[str, str]:
    """Variables that send services to a simulator.

    Args:
        where: The line that `arb simulate` prints.
        folder: For the symbols' cache and the decider's state: they must not replace what is kept of real exchanges,
            nor the money what was really spent.
    """
    environment = {
        KEY_VARIABLE: "sk-demo-0000-0000-0000",  # blacked out of all that is written: no word may look like it
        "ARB_CACHE_DIR": str(folder / "cache"),
        f"{PREFIX}DECIDER_STATE_FILE": str(folder / "decider.sqlite"),
    }
    for name, address in where["exchanges"].items():
        environment[f"{PREFIX}EXCHANGES_{name.upper()}"] = orjson.dumps(address).decode()
    endpoint = {"base_url": where["model_base_url"], "api_key_env": KEY_VARIABLE, "key_pattern": None}
    provider = orjson.dumps(endpoint).decode()
    for name in settings.providers:
        environment[f"{PREFIX}PROVIDERS_{name.upper()}"] = provider
    return environment


class Watcher:
    """Reads all topics in a thread of its own and feeds the board."""

    def __init__(self, settings: KafkaSettings, board: Board) -> None:
        self._reader = kafka.Reader(kafka.reader(settings, "demo"), WATCHED, None)
        self._board = board
        self.lock = threading.Lock()
        self.decisions: list[Decision] = []
        self.undecodable = 0
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-watcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            records = self._reader.read(1000, 0.05)
            now_ns = time.time_ns()
            if not records:
                continue
            with self.lock:
                for record in records:
                    try:
                        message = decode(record.value)
                    except UndecodableRecord:
                        self.undecodable += 1
                        continue
                    self._board.take(record.topic, message, now_ns)
                    if isinstance(message, Decision):
                        self.decisions.append(message)
            self._last = time.monotonic()

    def quiet(self, seconds: float, most_s: float) -> None:
        """Return when nothing has come for `seconds`."""
        end = time.monotonic() + most_s
        while time.monotonic() - self._last < seconds and time.monotonic() < end:
            time.sleep(0.02)  # waiting for silence: there is no event for it

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)
        self._reader.close()


def run(
    settings: Settings,
    *,
    seconds: float | None,
    seed: int,
    live: bool,
    broker_kind: str | None,
    logs: Path | None,
    picture: Path | None,
    as_json: bool,
) -> Report:
    """Bring everything up, show it, take it down, report. `picture`: keep the last screen as SVG.

    Raises:
        DependencyMissing: no broker can run here, or a service did not come up.
    """
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(words: str) -> None:
        stderr.print(f"demo: {words}", markup=False)

    # SIGTERM (a supervisor, `timeout`) must take everything down as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arb-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        say("starting a broker")
        broker = stack.enter_context(start_broker(broker_kind, say))
        say(f"broker: {broker.kind} at {broker.kafka.servers}: {broker.why}")
        if broker.kind != "mock":
            say(
                f"in a second shell: export ARB_KAFKA_SERVERS={broker.kafka.servers}; then "
                "arb explain --pair BTC kraken binance, arb report, arb watch rejections"
            )
        demo = _Demo(settings, broker, folder, live, seed, picture, say)
        report = demo.run(seconds, quiet=as_json)
    if not as_json:
        _farewell(stderr, report, logs)
    return report


class _Demo:
    """One run."""

    def __init__(
        self, settings: Settings, broker: Broker, logs: Path, live: bool, seed: int, picture: Path | None, say: Any
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._logs = logs
        self._live = live
        self._seed = seed
        self._picture = picture
        self._say = say
        self._exchanges = list(settings.enabled_exchanges())
        self._truth = logs / "truth.jsonl"
        environment = {**os.environ, f"{PREFIX}KAFKA_SERVERS": broker.kafka.servers}
        environment[f"{PREFIX}METRICS_PORT"] = "0"  # several services on one machine cannot share a port
        if broker.kafka.options:
            environment[f"{PREFIX}KAFKA_OPTIONS"] = orjson.dumps(broker.kafka.options).decode()
        self._services = Services(environment, logs)

    def run(self, seconds: float | None, *, quiet: bool) -> Report:
        report = Report(self._broker.kind, self._broker.why)
        board = Board(self._exchanges, self._settings.detector.persistence_ms)
        began = time.monotonic()
        ready_ns = stop_ns = 0
        watcher = Watcher(self._broker.kafka, board)
        try:
            self._start()
            ready_ns = self._wait_until_ready(watcher, board)
            began = time.monotonic()
            if not quiet:
                self._say(
                    "everything is up; Ctrl-C ends it" if seconds is None else f"everything is up for {seconds:g} s"
                )
            self._show(watcher, board, began, seconds, quiet)
        except KeyboardInterrupt:
            self._say("stopping")
        finally:
            if self._picture is not None:
                with watcher.lock:
                    save_picture(render(board, self._header(board, began), time.time_ns(), 170, 46), self._picture)
            report.seconds = round(time.monotonic() - began, 1)
            stop_ns = time.time_ns()
            with watcher.lock:
                report.books_live = board.live()
            report.failures = self._services.failed() + self._stop(watcher)
            watcher.close()
        board.fill(report)
        if not self._live:
            report.truth = board.compare(self._read_truth(), ready_ns or stop_ns, stop_ns)
        if watcher.undecodable:
            report.failures.append(f"{watcher.undecodable} records could not be decoded")
        return report

    def _start(self) -> None:
        self._services.start("detector", "detect")
        environment: dict[str, str] = {}
        if not self._live:
            environment = self._simulate()
        self._services.start("decider", "decide", environment=environment)
        for name in self._exchanges:
            self._services.start(f"collector-{name}", "collect", name, environment=environment)

    def _simulate(self) -> dict[str, str]:
        """Start the simulator; the variables that send the others to it."""
        self._say("no keys, no network: exchanges and models are simulated")
        simulator = self._services.start(
            "simulator", "simulate", "--seed", str(self._seed), "--truth", str(self._truth)
        )
        assert simulator.stdout is not None
        text = simulator.stdout.readline()
        if not text:
            simulator.wait(5)
            raise DependencyMissing("; ".join(self._services.failed()))
        where = orjson.loads(text)
        self._say(f"let something go wrong: arb faults add stall kraken --for-s 5 --url {where['control_url']}")
        self._exchanges = [name for name in self._exchanges if name in where["exchanges"]]
        return simulated(where, self._settings, self._logs)

    def _wait_until_ready(self, watcher: Watcher, board: Board) -> int:
        """All books live and the detector's group assigned; the moment in ns. On live feeds: as good as it gets."""
        wanted = {name: len(self._settings.exchanges[name].symbols) for name in self._exchanges}
        end = time.monotonic() + START_S
        grouped = not self._broker.topics_by_admin  # the mock cannot say
        while True:
            if failed := self._services.failed():
                raise DependencyMissing("; ".join(failed))
            with watcher.lock:
                live = board.live()
            grouped = grouped or cluster.group_is_stable(self._broker.kafka, "detector")
            if grouped and all(live.get(name, 0) >= count for name, count in wanted.items()):
                return time.time_ns()
            if time.monotonic() > end:
                if self._live:
                    return time.time_ns()
                raise DependencyMissing(f"not everything came up within {START_S:g} s: live books {live} of {wanted}")
            time.sleep(0.1)  # several processes come up; each is asked in turn

    def _show(self, watcher: Watcher, board: Board, began: float, seconds: float | None, quiet: bool) -> None:
        console = Console()
        end = None if seconds is None else began + seconds
        screen: Live | None = None
        with contextlib.ExitStack() as stack:
            if not quiet and console.is_terminal:
                screen = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
            while end is None or time.monotonic() < end:
                if failed := self._services.failed():
                    self._say("; ".join(failed))
                    return
                if screen is not None:
                    with watcher.lock:
                        now_ns, size = time.time_ns(), console.size
                        picture = render(board, self._header(board, began), now_ns, size.width, size.height)
                        screen.update(picture, refresh=True)
                elif not quiet:
                    _print_new(watcher, console)
                time.sleep(0.25)  # four pictures a second

    def _header(self, board: Board, began: float) -> str:
        source = "live public feeds" if self._live else f"simulated exchanges and models (seed {self._seed})"
        counted = ", ".join(f"{count} {name}" for name, count in sorted(board.outcomes.items())) or "none"
        return (
            f"Arbiter  {time.monotonic() - began:5.0f} s  {source}  broker: {self._broker.kind} "
            f"{self._broker.kafka.servers}  ticks {sum(board.ticks.values())}  decisions: {counted}  "
            f"cost {board.cost_usd:.6f} USD  (Ctrl-C ends)"
        )

    def _stop(self, watcher: Watcher) -> list[str]:
        """In the order of the data: what was read is judged, what was judged is published."""
        problems = self._services.stop("simulator", *(f"collector-{name}" for name in self._settings.exchanges))
        watcher.quiet(0.3, 3.0)
        problems += self._services.stop("detector")
        watcher.quiet(0.5, 5.0)
        problems += self._services.stop("decider")
        watcher.quiet(0.3, 2.0)
        return problems + self._services.stop()

    def _read_truth(self) -> list[dict[str, Any]]:
        if not self._truth.exists():
            return []
        return [orjson.loads(text) for text in self._truth.read_bytes().splitlines() if text.strip()]


def _print_new(watcher: Watcher, console: Console) -> None:
    """Without a terminal: each decision as a line."""
    with watcher.lock:
        new, watcher.decisions = watcher.decisions, []
    for decision in new:
        console.print(line(decision), markup=False, highlight=False, soft_wrap=True)


def _farewell(console: Console, report: Report, logs: Path | None) -> None:
    def counted(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    latency = report.latency_ms["frame_to_opportunity"]
    decided, modes = counted(report.decisions["outcome"]), counted(report.decisions["mode"])
    lines = [
        f"ran {report.seconds:g} s on {report.broker}: {sum(report.ticks.values())} ticks",
        f"books live: {counted(report.books_live)}",
        f"opportunities: {counted(report.opportunities)}; rejections: {counted(report.rejections)}",
        f"decisions: {decided} ({modes}), {report.cost_usd} USD for models",
    ]
    if report.truth is not None:
        lines.append(
            f"against the simulator's own log: {report.truth['found']} of {report.truth['gaps']} gaps longer than "
            f"half a second found, {report.truth['false']} invented"
        )
    if latency["p50"] is not None:
        lines.append(f"frame to opportunity: {latency['p50']} ms median, {latency['p99']} ms p99")
    lines += [f"FAILED: {failure}" for failure in report.failures]
    lines += [
        "where to look next:",
        "  README.md                 your own program on the decision topic, in a few lines",
        "  arb demo --live           the same on the exchanges' public feeds",
        "  arb decisions, arb budget what the panel decided, step by step, and what it cost (docs/decisions.md)",
        "  arb explain, arb report   why a gap was (not) taken; how long edges last (of a running cluster, or files)",
        "  arb watch decisions       follow a topic of a running cluster",
        "  arb evaluate --help       what one pair of books would be worth",
        "  deploy/arb.toml           every setting with its default",
        "  docs/architecture.md      how it is built",
    ]
    if logs is not None:
        lines.append(f"  {logs}    the services' logs of this run")
    for text in lines:
        console.print(text, markup=False)
