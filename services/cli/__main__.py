"""The `arb` command. Every command has --help; exit codes: 0 done, 1 the answer is no, 2 wrong usage, setting or
input, 3 something outside is missing (a broker, a program)."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from services.cli import doctor, output
from services.cli.decisions import commands
from services.cli.dlq.commands import dlq_app
from services.cli.faults import faults_app
from shared import cluster, health, process, settings
from shared.errors import ArbiterError, InputError, UsageError

app = typer.Typer(
    help="Arbiter watches the same coins on several exchanges, finds price gaps that still pay after depth, fees and "
    "conversion, asks a panel of language models about each, and publishes an explained decision. It places no orders.",
    epilog="Exit codes: 0 done, 1 the answer is no, 2 wrong usage, setting or input, 3 something outside is missing.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
topics_app = typer.Typer(help="The topics of the cluster: create them, compare them.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(faults_app, name="faults")
app.add_typer(dlq_app, name="dlq")
app.add_typer(commands.replay_app, name="replay")

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: ARB_CONFIG, else ./arb.toml, else defaults.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

stdout = Console(soft_wrap=True, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def main() -> None:
    """Run `arb`; an error of ours ends it with one line and its exit code."""
    try:
        app()
    except ArbiterError as error:
        process.fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone (`arb watch | head`)
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.exit(0)


def _load(config: Path | None) -> settings.Settings:
    loaded = settings.load(config)
    process.setup_logging(loaded.log)
    return loaded


def _serve(loaded: settings.Settings, own: health.Health) -> health.Health:
    """Before the service connects to anything: what is away must not keep it from saying so."""
    health.serve(own, loaded.metrics.host, loaded.metrics.port)
    return own


# ---------------------------------------------------------------- services


@app.command()
def collect(
    exchange: Annotated[
        str, typer.Argument(help="Exchange, as in the settings: binance, coinbase, kraken, bybit, okx.")
    ],
    shard: Annotated[
        str, typer.Option(help="I/N: process I (from 1) of N follows its part of the symbols; all with equal settings.")
    ] = "1/1",
    config: Config = None,
) -> None:
    """Follow one exchange: verified books, trades and health to its tick topic. Until SIGTERM or Ctrl-C."""
    from services.collector import __main__ as collector  # services are heavy imports: only the one that runs

    part = output.shard(shard)
    loaded = _load(config)
    collector.main(loaded, exchange, part, _serve(loaded, collector.health()))
    process.leave()


@app.command()
def detect(
    from_file: Annotated[
        list[Path] | None,
        typer.Option(help="Recorded ticks, one message a line, in any order; - or .gz (may be repeated)."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Ticks of the topics received from this moment on: 2026-11-21T10:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="... and before this one; default: two seconds ago.")] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish what is found instead of printing it; needs --group and --until.")
    ] = False,
    group: Annotated[
        str | None, typer.Option(help="With --publish: all processes of the same name share the work.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Print to this file.")] = None,
    config: Config = None,
) -> None:
    """Compare the books of each coin: opportunities and rejections. Until SIGTERM or Ctrl-C.

    With --from-file or --since what was recorded is replayed instead, in the order in which it was received: JSON
    lines, the same bytes on every run; with --publish the same ids, however many processes share the work.
    """
    from services.detector import __main__ as detector
    from services.detector.recorded import chosen_range

    if not (from_file or since):
        if until or publish or group or out:
            raise UsageError("--until, --publish, --group and --out go with --since or --from-file")
        loaded = _load(config)
        detector.main(loaded, _serve(loaded, detector.health()))
        return
    if publish and (from_file or out or not (group and since and until)):
        raise UsageError("--publish goes with --since, --until and --group, and without --from-file and --out")
    if group and not publish:
        raise UsageError("--group goes with --publish")
    within = chosen_range(since, until)
    loaded = _load(config)
    if from_file:
        detector.from_files(loaded, from_file, within, out)
    elif publish:
        assert within is not None
        assert group is not None
        detector.share(loaded, within, group)
    else:
        assert within is not None
        detector.from_topics(loaded, within, out)


@app.command()
def decide(config: Config = None) -> None:
    """Judge each opportunity by rules and a panel of models: decisions. Until SIGTERM or Ctrl-C."""
    from services.decider import __main__ as decider

    loaded = _load(config)
    decider.main(loaded, _serve(loaded, decider.health()))


@app.command()
def simulate(
    seed: Annotated[int, typer.Option(help="Seed of the generated market.")] = 1,
    capture: Annotated[list[Path] | None, typer.Option(help="Replay captured frames (may be repeated).")] = None,
    speed: Annotated[float, typer.Option(help="Speed of a replay; 1 is the original timing.", min=0.01)] = 1.0,
    loop: Annotated[bool, typer.Option("--loop/--once", help="Replay again and again, or once.")] = False,
    rate: Annotated[float, typer.Option(help="Generated updates a second for each book.", min=0.1, max=200)] = 5.0,
    pace: Annotated[
        float, typer.Option(help="How many times more often than usual a gap is opened.", min=0.1, max=20)
    ] = 1.0,
    truth: Annotated[Path | None, typer.Option(help="Write the gaps that are really there to this file.")] = None,
    model_faults: Annotated[
        float, typer.Option(help="Share of model calls that fail, are late or wrong.", min=0, max=1)
    ] = 0.04,
    port: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PORT, such as kraken=9001, models=9100 or control=9099; default: free ports."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where exchanges and models listen; 0.0.0.0: for other machines, too.")] = (
        "127.0.0.1"
    ),
    advertise: Annotated[
        str | None, typer.Option(help="The name by which others reach this machine; default: --host.")
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="Write the addresses to this file: settings for collectors and deciders."),
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(help="Faults to inject: a TOML file of [[fault]] tables with kind and exchange.")
    ] = None,
    config: Config = None,
) -> None:
    """Stand in for the exchanges and the models, in their own protocols; on the loopback interface unless told to.

    Prints one JSON line with the addresses when it is ready: put them into the settings
    (ARB_EXCHANGES_KRAKEN='{"ws_url": "..."}'), or let --settings write them as a file for ARB_CONFIG. Without --capture
    it generates books and opens gaps. `arb faults` switches faults while it runs; its line says where ("control_url").
    """
    from services.simulator import __main__ as simulator

    ports = dict(output.name_and_port(text) for text in port or [])
    options = simulator.Options(
        seed=seed,
        capture=tuple(capture or ()),
        speed=speed,
        loop=loop,
        rate=rate,
        pace=pace,
        truth=truth,
        model_faults=model_faults,
        faults=faults,
        host=host,
        advertise=advertise,
        ports=ports,
        settings=settings_file,
    )
    loaded = _load(config)
    simulator.main(loaded, options, _serve(loaded, simulator.health()))


@app.command("health")
def ask_health(
    ready: Annotated[bool, typer.Option("--ready", help="Whether it does its job, not only whether it runs.")] = False,
    url: Annotated[
        str | None, typer.Option(help="Where it answers; default: metrics.host and metrics.port of the settings.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Ask a running service how it is. Ends 0 if it is well, 1 if not, 3 if nothing answers."""
    from services.cli.health import run

    raise typer.Exit(run(url, ready=ready, as_json=as_json, config=config))


@app.command()
def demo(
    seconds: Annotated[
        float | None, typer.Option(help="End after so many seconds; default: until Ctrl-C.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulated market.")] = 1,
    live: Annotated[bool, typer.Option("--live", help="The exchanges' public feeds instead of the simulator.")] = False,
    broker: Annotated[str | None, typer.Option(help="Force a broker: external, jars, docker or mock.")] = None,
    keep_logs: Annotated[Path | None, typer.Option(help="Folder for the services' logs.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Keep the last screen as an SVG file.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Everything on this machine: broker, exchanges, collectors, detector, decider, and a live screen.

    Needs no keys, no Docker and no network (except --live). Ends 1 if a service failed.
    """
    from services.cli.demo import run

    loaded = settings.load(config)
    report = run(
        loaded,
        seconds=seconds,
        seed=seed,
        live=live,
        broker_kind=broker,
        logs=keep_logs,
        picture=picture,
        as_json=as_json,
    )
    if as_json:
        print(orjson.dumps(report.as_dict(), option=orjson.OPT_INDENT_2).decode())  # noqa: T201
    raise typer.Exit(1 if report.failures else 0)


# ---------------------------------------------------------------- topics


@topics_app.command("apply")
def topics_apply(
    brokers: Annotated[int, typer.Option(help="Wait until the cluster has so many brokers.", min=1)] = 1,
    wait_s: Annotated[float, typer.Option(help="How long to wait for them.", min=1)] = 30.0,
    config: Config = None,
) -> None:
    """Create missing topics and put their settings right. Never changes a number of partitions."""
    changes = cluster.apply_topics(_load(config).kafka, brokers=brokers, timeout_s=wait_s)
    for line in changes or ["nothing to do: all topics are as they must be"]:
        stdout.print(line)


@topics_app.command("check")
def topics_check(as_json: AsJson = False, config: Config = None) -> None:
    """Compare the cluster's topics with the table. Ends 1 if something differs."""
    findings = cluster.check_topics(_load(config).kafka)
    if as_json:
        print(orjson.dumps([{"topic": f.topic, "problem": f.problem} for f in findings]).decode())  # noqa: T201
    else:
        for finding in findings:
            cure = "`arb topics apply` mends it" if finding.mendable else "delete it and run `arb topics apply`"
            stdout.print(f"{finding.topic} {finding.problem}: {cure}")
        if not findings:
            stdout.print("all topics are as they must be")
    raise typer.Exit(1 if findings else 0)


@topics_app.command("acls")
def topics_acls(
    check: Annotated[bool, typer.Option("--check", help="Compare with the cluster's rules.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Create the rules that are missing; removes none.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Who may do what: the rules of access for each service's user, as commands of Kafka's own tool.

    With --check or --apply the cluster is asked: ends 1 if it lacks rules of the table or allows our users more.
    """
    from services.cli.acls import run

    if check and apply:
        raise UsageError("--check or --apply, not both")
    raise typer.Exit(run(_load(config).kafka, ask=check or apply, apply=apply, as_json=as_json))


# ---------------------------------------------------------------- looking


class Watched(StrEnum):
    """What `arb watch` follows."""

    OPPORTUNITIES = "opportunities"
    REJECTIONS = "rejections"
    DECISIONS = "decisions"
    AUDIT = "audit"
    OUTCOMES = "outcomes"
    HEALTH = "health"
    TICKS = "ticks"


@app.command()
def watch(
    what: Annotated[list[Watched] | None, typer.Argument(help="One or more; default: decisions.")] = None,
    since: Annotated[float | None, typer.Option(help="Begin with the last so many seconds.", min=0)] = None,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds.", min=0)] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Follow what is published, one line a message. Until Ctrl-C.

    `arb watch ticks --json > ticks.jsonl` records what `arb detect --from-file` replays, `arb watch audit --json` what
    `arb replay decisions --from-file` does. With --json a record that cannot be read is left out, and told on standard
    error: what is written can always be read again.
    """
    from services.cli.watch import follow

    chosen = [item.value for item in what or [Watched.DECISIONS]]
    loaded = _load(config)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(follow(loaded.kafka, chosen, since, seconds, as_json, stdout))


# ---------------------------------------------------------------- one file, one case


@app.command("instruments")
def list_instruments(
    exchange: Annotated[str, typer.Argument(help="Exchange, as in the settings.")],
    symbol: Annotated[list[str] | None, typer.Option(help="Only this one, such as BTC-USDT (may be repeated).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are listed, not only those configured.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """What an exchange lists: native names, tick and lot steps, least orders, status. Asks it, else reads the disk.

    Ends 1 if a symbol is not listed or not traded, 3 if neither the exchange nor a copy on disk can be had.
    """
    from services.cli.instruments import run

    loaded = _load(config)
    good = run(loaded, exchange, tuple(symbol or ()), everything, as_json, stdout, stderr)
    raise typer.Exit(0 if good else 1)


@app.command()
def verify(
    exchange: Annotated[str | None, typer.Argument(help="Exchange whose protocol the file speaks.")] = None,
    file: Annotated[Path | None, typer.Argument(help="Captured frames, one JSON object a line; plain or .gz.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--all", help="Verify every recording in this folder, and damaged copies of them.")
    ] = None,
    runs: Annotated[int, typer.Option(help="With --all: damaged copies for each exchange.", min=0)] = 500,
    as_json: AsJson = False,
) -> None:
    """Run a recording through the collector's adapter: are the books right?

    With --all also damaged copies of each (frames dropped, repeated, reordered, cut, bits flipped): is a live book
    ever wrong? Needs no network and no settings. Ends 0 if every book verified, 1 if not, 2 for a file that cannot
    be read.
    """
    from services.collector.verify import ok, verify_all
    from services.collector.verify import verify as run

    if (folder is None) == (exchange is None or file is None) or (folder is not None and exchange is not None):
        raise UsageError("arb verify takes EXCHANGE and FILE, or --all FOLDER")
    if folder is not None:
        if not folder.is_dir():
            raise InputError(str(folder), "is not a folder")
        with _quiet(), stderr.status("verifying") as status:
            everything = verify_all(folder, runs, status.update)
        if as_json:
            print(orjson.dumps(everything).decode())  # noqa: T201
        else:
            output.print_verifications(stdout, everything)
        raise typer.Exit(0 if everything["ok"] else 1)
    assert exchange is not None
    assert file is not None
    with _quiet():
        report = run(exchange, file)
    if as_json:
        print(orjson.dumps(report).decode())  # noqa: T201
    else:
        output.print_verification(stdout, report)
    raise typer.Exit(0 if ok(report) else 1)


@app.command()
def evaluate(as_json: AsJson = False) -> None:
    """Read one case (JSON) from standard input: what would this pair of books be worth?

    {"base": "BTC", "buy": {"exchange", "symbol", "asks": [[price, size], ...]}, "sell": {"exchange", "symbol",
    "bids": [...]}} and optionally "fees_bps": {"buy", "sell"}, "rates": {"USDT-USD": {"bid", "ask"}}, "lot_step":
    {"buy", "sell"}, "min_notional", "max_notional", "fee_in_base" (true: the purchase pays its fee in the coin),
    "balances": {"buy" (quote currency), "sell" (base)}, "max_depth_share". What is left out does not limit. Money is in
    USD.
    Ends 0 if it pays, 1 if it does not, 2 for a case that cannot be read.
    """
    from services.detector.evaluate import evaluate_case

    case = output.read_case(sys.stdin.buffer.read())
    result = evaluate_case(case)
    if as_json:
        print(orjson.dumps(result).decode())  # noqa: T201
    else:
        output.print_evaluation(stdout, result)
    raise typer.Exit(0 if result["verdict"] == "open" else 1)


@app.command()
def explain(
    identity: Annotated[str | None, typer.Argument(metavar="ID", help="Id of an opportunity or a rejection.")] = None,
    pair: Annotated[
        tuple[str, str, str] | None,
        typer.Option(metavar="BASE BUY SELL", help="The newest verdict on a coin between two exchanges instead."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="How far back: 90s, 30m, 1h, 2d; default: all for an id, 1h for a pair.")
    ] = None,
    from_file: Annotated[
        list[Path] | None, typer.Option(help="Messages, one a line, instead of Kafka (may be repeated).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also every phase of it, with time and reasons.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Why did it happen, or not? The numbers of one verdict step by step: tops, conversion, fees, depth, time, reasons.

    Ids are in `arb watch rejections --json`. A pair is found in both directions. What the message says is computed
    again from its own prices; a contradiction is shown. Ends 1 if there is no such verdict.
    """
    from services.cli.explain import asked, duration_s, run

    what = asked(identity, pair)
    since_s = None if since is None else duration_s(since)
    run(_load(config), what, since_s, tuple(from_file or ()), everything, as_json, stdout)


app.command("decisions")(commands.decisions)
app.command("decision")(commands.decision)


class Grouped(StrEnum):
    """What `arb report` groups by."""

    PAIR = "pair"
    BASE = "base"
    EXCHANGE = "exchange"
    ROUTE = "route"


@app.command()
def report(
    by: Annotated[Grouped, typer.Option(help="What makes a group; exchange: buying and selling apart.")] = Grouped.PAIR,
    base: Annotated[list[str] | None, typer.Option(help="Only this coin, such as BTC (may be repeated).")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Opened since: 24h, 90m or 2026-11-21T10:00:00Z; default: 24h in Kafka, all of a file."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="... and before; default: now.")] = None,
    need_ms: Annotated[int, typer.Option(help="So long until your orders are at both exchanges.", min=0)] = 100,
    top: Annotated[int, typer.Option(help="Tables of so many groups; 0: all.", min=0)] = 10,
    png: Annotated[Path | None, typer.Option(help="Also write the plot to this PNG file (needs matplotlib).")] = None,
    from_file: Annotated[
        list[Path] | None,
        typer.Option(help="Messages, one a line, instead of Kafka; - or .gz (may be repeated)."),
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Is there an edge today, and for how long does it survive? Of all opportunities: which share still pays later.

    Ends 0 if there is an edge, 1 if not; the rule is printed with its numbers, docs/report.md explains it.
    """
    from services.cli.report import Asked, By, run

    asked = Asked(By(by), tuple(base or ()), since, until, need_ms, top)
    edge = run(_load(config).kafka, asked, tuple(from_file or ()), png, as_json, stdout, stderr)
    raise typer.Exit(0 if edge else 1)


@app.command()
def budget(
    forgive: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Let this role's rolled back candidates try again.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """What models have cost: spent, cap and left, for the minute, the day, the shadow and each provider.

    Also which candidates were rolled back, and why. Reads the deciders' file (decider.state_file) and changes nothing,
    except with --forgive, which ends 1 if there is no rollback to forgive.
    """
    import time

    from services.cli.budget import run

    good = run(_load(config), forgive, time.time_ns(), as_json, stdout)
    raise typer.Exit(0 if good else 1)


@app.command()
def scorecard(
    since: Annotated[
        str | None,
        typer.Option(help="Detected since: 7d, 90m or 2026-11-21T10:00:00Z; default: 7d in Kafka, all of a file."),
    ] = None,
    horizon_ms: Annotated[
        int, typer.Option(help="So long after its opening a gap must still pay; one of detector.outcome_delays_ms.")
    ] = 1000,
    png: Annotated[Path | None, typer.Option(help="Also write the plots to this PNG file (needs matplotlib).")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Also write weights and calibration for decider.weights_file to this file.")
    ] = None,
    from_file: Annotated[
        list[Path] | None,
        typer.Option(help="Messages, one a line, instead of Kafka; - or .gz (may be repeated)."),
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Do the models know something, and are they worth it? Their answers against what became of the opportunities.

    Ends 0 if the models added value over the rules, 1 if not or if nobody can tell; docs/scorecard.md explains it.
    """
    from services.cli.scorecard import run

    good = run(_load(config), since, horizon_ms, tuple(from_file or ()), png, save, as_json, stdout, stderr)
    raise typer.Exit(0 if good else 1)


app.command("doctor")(doctor.command)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines of a service: the report says it all."""
    import logging

    import structlog

    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(wrapper_class=before)


if __name__ == "__main__":
    main()
