"""The commands themselves: options in, one call each. What is heavy is imported when a command runs."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console

from shared import process, settings
from shared.errors import ArbiterError, InputError, UsageError

if TYPE_CHECKING:
    from services.cli.decisions.finding import Source
    from services.cli.decisions.listing import Wanted

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: ARB_CONFIG, else ./arb.toml, else defaults.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
FromFile = Annotated[
    list[Path] | None,
    typer.Option(help="Messages, one a line, instead of Kafka; - or .gz (may be repeated)."),
]

HOUR = "1h"

stdout = Console(soft_wrap=True, highlight=False)

replay_app = typer.Typer(
    help="Judge again what was recorded. Ticks are replayed by `arb detect --from-file` (docs/replay.md).",
    no_args_is_help=True,
)


class Decided(StrEnum):
    """Outcomes of a decision."""

    EXECUTE = "execute"
    HOLD = "hold"
    REJECT = "reject"


def decisions(
    since: Annotated[
        str | None,
        typer.Option(help="Decided since: 1h, 90m or 2026-11-21T10:00:00Z; default: 1h in Kafka, all of a file."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="... and before; default: now.")] = None,
    outcome: Annotated[list[Decided] | None, typer.Option(help="Only these (may be repeated).")] = None,
    base: Annotated[list[str] | None, typer.Option(help="Only this coin, such as BTC (may be repeated).")] = None,
    reason: Annotated[list[str] | None, typer.Option(help="Only this reason, such as veto (may be repeated).")] = None,
    limit: Annotated[int, typer.Option(help="Show so many, the newest; 0: all.", min=0)] = 50,
    from_file: FromFile = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """What was decided: a table, the newest last, each decision once, and counts and costs of all.

    Ends 1 if there is none. `arb decision ID` tells one step by step.
    """
    from services.cli.decisions import finding, listing
    from services.decider.judge import Reason
    from services.decider.scoring import Why
    from shared import topics

    known = sorted({*map(str, Reason), *map(str, Why)})
    for name in reason or []:
        if name not in known:
            raise UsageError(f"--reason {name!r}: there is no such reason; there are {', '.join(known)}")
    wanted = _wanted(since, until, from_file)._replace(
        outcomes=tuple(one.value for one in outcome or []),
        bases=tuple(one.upper() for one in base or []),
        reasons=tuple(reason or []),
    )
    source = _source(_load(config), from_file)
    names = [topics.DECISIONS, topics.AUDIT] if from_file else [topics.DECISIONS]
    found = finding.listed(source.read(names, wanted.since_ns or 0, wanted.until_ns), wanted.holds)
    if not found.decisions:
        raise ArbiterError(
            f"no decision{wanted} {source.words(wanted.since_ns)}; --since looks further back, `arb watch "
            "opportunities` shows whether there is anything to decide"
        )
    if as_json:
        _print_json(listing.as_value(found, limit))
    else:
        listing.show(stdout, found, limit)


def decision(
    identity: Annotated[
        str, typer.Argument(metavar="ID", help="Of a decision or of an opportunity, or enough of its beginning.")
    ],
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Also every text that went to a model and came back.")
    ] = False,
    from_file: FromFile = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Why was it decided so? What was detected, rules, panel, each role's answer, the last check, what became of it.

    Ends 1 if there is no such decision. docs/decisions.md explains what is printed.
    """
    from services.cli.decisions import finding, show, words

    loaded = _load(config)
    terms = finding.terms_of(loaded)
    about = finding.dossier(_source(loaded, from_file), identity, time.time_ns())
    explained = words.explain(about, terms)
    if as_json:
        _print_json(show.decision_value(explained, about))
    else:
        show.show_decision(stdout, explained, about, prompts=prompt)


@replay_app.command("decisions")
def replay_decisions(
    from_file: FromFile = None,
    since: Annotated[
        str | None,
        typer.Option(help="Decided since: 1h, 90m or 2026-11-21T10:00:00Z; default: all of a file."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="... and before; default: now.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write what comes out to this file, a line each.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Recorded answers instead of calls: does the same decision come out again, byte for byte?

    Under other settings it is a what-if: which decisions would have been others. Calls no model. Ends 1 if a decision
    of the panel of now comes out otherwise, if a record is damaged, or if there is none.
    """
    from services.cli.decisions import finding, show
    from services.cli.decisions.replay import Replay
    from shared import topics
    from shared.messages import Audit, Decision

    if not (from_file or since):
        raise UsageError("arb replay decisions takes --from-file FILE or --since 1h")
    wanted = _wanted(since, until, from_file)
    loaded = _load(config)
    running = Replay(finding.terms_of(loaded))
    source = _source(loaded, from_file)
    for found in source.read([topics.AUDIT, topics.DECISIONS], wanted.since_ns or 0, wanted.until_ns):
        message = found.message
        if isinstance(message, Audit) and wanted.holds(message.decision):
            running.take(message)
        elif isinstance(message, Decision) and wanted.holds(message):
            running.published(message.decision_id, found.value)
    for where, why in source.unreadable:
        running.unreadable(where, why)
    report = running.report()
    if not report.records and report.ok:
        raise ArbiterError(
            f"no record of a decision {source.words(wanted.since_ns)}: the topic decision-audit has them for 7 days"
        )
    if out is not None:
        _write(out, report.encoded)
    if as_json:
        _print_json(show.replay_value(report))
    else:
        show.show_replay(stdout, report)
    raise typer.Exit(0 if report.ok else 1)


# ---------------------------------------------------------------- parts


def _load(config: Path | None) -> settings.Settings:
    loaded = settings.load(config)
    process.setup_logging(loaded.log)
    return loaded


def _wanted(since: str | None, until: str | None, files: list[Path] | None) -> "Wanted":
    """The range; an hour in Kafka and all of a file if nothing is said.

    Raises:
        UsageError: a time is none, or the range is empty.
    """
    from services.cli.decisions.listing import Wanted
    from services.cli.report import moment_ns

    now_ns = time.time_ns()
    if since is None and not files:
        since = HOUR
    since_ns = None if since is None else moment_ns("--since", since, now_ns)
    until_ns = None if until is None else moment_ns("--until", until, now_ns)
    if since_ns is not None and since_ns >= (now_ns if until_ns is None else until_ns):
        raise UsageError("--since must be before --until (default: now)")
    return Wanted(since_ns, until_ns)


def _source(loaded: settings.Settings, files: list[Path] | None) -> "Source":
    from services.cli.decisions.finding import Files, Topics
    from shared import cluster

    if files:
        return Files(tuple(files))
    cluster.wait_for_brokers(loaded.kafka)
    return Topics(loaded.kafka)


def _print_json(value: object) -> None:
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())  # noqa: T201


def _write(file: Path, lines: tuple[bytes, ...]) -> None:
    """Whole or not at all."""
    beside = file.with_name(f".{file.name}.part")
    try:
        beside.write_bytes(b"".join(line + b"\n" for line in lines))
        beside.replace(file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(str(file), error.strerror or str(error)) from None
