"""`arb dlq list | show | replay`: options in, one call each."""

import contextlib
import os
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from shared import process, secrets, settings
from shared.errors import SettingsError, UsageError

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: ARB_CONFIG, else ./arb.toml, else defaults.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Since = Annotated[str | None, typer.Option(help="Put aside since: 24h, 90m or 2026-11-21T10:00:00Z; default: all.")]
Topic = Annotated[str | None, typer.Option(help="Only of this topic, such as arbitrage-opportunities.")]
Stage = Annotated[str | None, typer.Option(help="Only of this stage: decode, decide.")]
Error = Annotated[str | None, typer.Option(help="Only with this error, such as UndecodableRecord.")]

stdout = Console(soft_wrap=True, highlight=False)

dlq_app = typer.Typer(
    help="Dead letters, which no service could process: list them, look at one, send them again.", no_args_is_help=True
)


@dlq_app.command("list")
def list_letters(
    since: Since = None,
    topic: Topic = None,
    stage: Stage = None,
    error: Error = None,
    each: Annotated[bool, typer.Option("--each", help="With --json: each letter instead of the sums.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """How many there are, by topic, stage and error, with the newest of each."""
    from services.cli.dlq import box, letters, show

    wanted = letters.Wanted(frozenset(), _known(topic), stage, error)
    found = box.find(_load(config).kafka, wanted, _since_ms(since))
    if as_json and each:
        _print_json([show.as_value(one, value=False) for one in found])
    elif as_json:
        heaps = letters.heaps(found)
        _print_json(
            [
                {
                    "topic": one.topic,
                    "stage": one.stage,
                    "error": one.error,
                    "count": one.count,
                    "waiting": one.waiting,
                    "oldest_ms": one.oldest_ms,
                    "newest_ms": one.newest_ms,
                    "newest": str(one.newest),
                    "message": show.text(one.message.encode()),
                }
                for one in heaps
            ]
        )
    elif found:
        show.show_heaps(stdout, found)
    else:
        stdout.print("no dead letters")


@dlq_app.command("show")
def show_one(
    identity: Annotated[str, typer.Argument(metavar="ID", help="TOPIC/PARTITION/OFFSET, as `arb dlq list` prints it.")],
    full: Annotated[bool, typer.Option("--full", help="The whole value, however long.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """One dead letter: where it comes from, why it is here, its value, and whether it would be read now.

    Ends 1 if there is no such letter.
    """
    from services.cli.dlq import box, letters, show

    place = letters.place_of(identity)
    letter = box.one(_load(config).kafka, place)
    if as_json:
        _print_json(show.as_value(letter, value=True))
    else:
        show.show_letter(stdout, letter, full=full)


@dlq_app.command("replay")
def replay(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Letters to send.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
    since: Since = None,
    topic: Topic = None,
    stage: Stage = None,
    error: Error = None,
    limit: Annotated[
        int, typer.Option(help="At most so many, the oldest first; their values fit into memory.", min=1)
    ] = 1000,
    yes: Annotated[bool, typer.Option("--yes", help="Send them; without it nothing is sent.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what cannot be read now, and ticks whose prices are old.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was sent before, or may have been.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Send dead letters to the topic they come from, with key and headers. Without --yes it only says what it would.

    A letter that cannot be read now is refused, and so is one that was sent before: two runs at once send it once. An
    opportunity whose time is over is answered as expired. Ends 1 if anything that was meant is not sent.
    """
    from services.cli.dlq import box, letters, show

    places = frozenset(letters.place_of(text) for text in ids or [])
    if not places and not (everything or since or topic or stage or error):
        raise UsageError("say which: an ID (`arb dlq list`), --all, --topic, --stage, --error or --since")
    if places and everything:
        raise UsageError("--all goes without an ID")
    wanted = letters.Wanted(places, _known(topic), stage, error)
    loaded = _load(config)
    found = list(letters.in_their_order(box.find(loaded.kafka, wanted, _since_ms(since))))
    now_ms = int(time.time() * 1000)
    refused = {
        str(one.place): why
        for one in found
        if (why := letters.refusal(one, now_ms, force=force, again=again)) is not None
    }
    refused |= {str(place): "there is no such letter" for place in places - {one.place for one in found}}
    chosen = [one for one in found if str(one.place) not in refused]
    more = len(chosen) - limit
    chosen = chosen[:limit]
    sent = box.send(loaded.kafka, chosen) if yes and chosen else box.Sent((), ())
    refused |= {str(one.place): "another run sends it right now" for one in sent.others}
    refused |= {str(one.place): "it was deleted just now" for one in sent.gone}
    if as_json:
        _print_json(
            {
                "sent": [str(one.place) for one in sent.taken],
                "would_send": [] if yes else [str(one.place) for one in chosen],
                "refused": {place: show.text(why.encode()) for place, why in refused.items()},
                "left": max(0, more),
            }
        )
    else:
        for one in sent.taken if yes else chosen:
            stdout.print(
                show.text(f"{'sent' if yes else 'would send'} {one.place} to {one.topic}".encode()), markup=False
            )
        for place, why in refused.items():
            stdout.print(f"refused {place}: {show.text(why.encode())}", markup=False)
        if more > 0:
            stdout.print(f"{more} more: run it again, or with a larger --limit")
        stdout.print(_sum(len(sent.taken), len(chosen), len(refused), yes=yes))
    raise typer.Exit(0 if chosen and not refused and more <= 0 else 1)


def _sum(sent: int, chosen: int, refused: int, *, yes: bool) -> str:
    if not (chosen or refused):
        return "no dead letter is meant by that"
    rest = f", {refused} refused" if refused else ""
    if yes:
        return f"{sent} sent{rest}"
    return f"nothing was sent: {chosen} would be{rest}" + ("; --yes sends them" if chosen else "")


def _known(topic: str | None) -> str | None:
    from shared.topics import TOPICS, dlq

    names = sorted(one.name for one in TOPICS)
    read = [name for name in names if dlq(name) in names or name.endswith(".dlq")]
    if topic is not None and topic not in read:
        raise UsageError(f"--topic {topic!r}: has no dead letters; there are {', '.join(read)}")
    return topic


def _since_ms(since: str | None) -> int:
    from services.cli.report import moment_ns

    return 0 if since is None else moment_ns("--since", since, time.time_ns()) // 1_000_000


def _load(config: Path | None) -> settings.Settings:
    loaded = settings.load(config)
    process.setup_logging(loaded.log)
    for provider in loaded.providers.values():  # what a model's answer may have brought into a record
        with contextlib.suppress(SettingsError):
            if (key := provider.api_key(os.environ)) is not None:
                secrets.register(key)
    return loaded


def _print_json(document: object) -> None:
    print(orjson.dumps(document).decode())  # noqa: T201
