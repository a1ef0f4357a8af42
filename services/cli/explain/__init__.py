"""`arb explain`: the numbers of one verdict, step by step, recomputed from the message's own fields.

What the message says and what its own prices, fees and rates say must agree; where they do not, the explanation says
so: it would be our mistake. `sums` computes, `words` and `steps` make sentences, `search` finds it, `show` prints it.
"""

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
from rich.console import Console

from services.cli.explain import search, show, steps
from services.cli.explain.search import Asked, asked, duration_s
from services.cli.explain.words import Present
from shared import cluster
from shared.errors import UsageError
from shared.settings import Settings

__all__ = ["asked", "duration_s", "run"]

PAIR_S = 3600.0
"""How far back a pair is looked for, unless told."""


def run(
    settings: Settings,
    what: Asked,
    since_s: float | None,
    files: Sequence[Path],
    everything: bool,
    as_json: bool,
    console: Console,
) -> None:
    """Find the verdict and print it.

    Raises:
        ArbiterError: there is no such verdict; says what was searched.
        UsageError: `since_s` with files, which are read whole.
        InputError: a file or a line of it cannot be read.
        UnknownExchange: a pair names one that is not in the settings.
        BrokerUnavailable: Kafka does not answer.
    """
    if files:
        if since_s is not None:
            raise UsageError("--since is for Kafka: files are read whole")
        searched = search.search_files(files, what)
    else:
        if what.pair is not None:
            since_s = PAIR_S if since_s is None else since_s
            for name in what.pair[1:]:
                settings.exchange(name)
        cluster.wait_for_brokers(settings.kafka)
        now_ms = int(time.time() * 1000)
        searched = search.search_kafka(lambda ms: search.read_kafka(settings.kafka, ms), what, since_s, now_ms)
    if not searched.found:
        raise search.not_found(searched, what)
    newest = searched.found[-1]
    timeline = search.verdicts(searched.values, Asked(steps.identity(newest)))
    explained = steps.explain(timeline, Present(settings, datetime.datetime.now(datetime.UTC).date()))
    ways = search.directions(searched.found) if what.pair is not None else []
    opportunity = search.became(newest, searched.values)
    shown = (explained, ways, timeline if everything else [], opportunity)
    if as_json:
        print(orjson.dumps(show.as_value(*shown), option=orjson.OPT_INDENT_2).decode())  # noqa: T201
    else:
        show.show(console, *shown)
