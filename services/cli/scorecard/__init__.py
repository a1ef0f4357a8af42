"""`arb scorecard`: do the models know something, and are they worth what they cost?

`forecasts` has the scores, `sums` joins decisions to what became of their opportunities, `words`, `show` and `picture`
say it, `reading` fetches it.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
from rich.console import Console

from services.cli.report import moment_ns, require_plots, span_words
from services.cli.scorecard import reading, show, sums, words
from services.cli.scorecard.sums import Scorecard
from shared.errors import InputError, UsageError
from shared.settings import Settings

__all__ = ["SINCE", "run"]

SINCE = "7d"
"""How far back in Kafka, unless told. Files are read whole."""


def run(
    settings: Settings,
    since: str | None,
    horizon_ms: int,
    files: Sequence[Path],
    picture: Path | None,
    save: Path | None,
    as_json: bool,
    stdout: Console,
    stderr: Console,
    clock: Callable[[], int] = time.time_ns,
) -> bool:
    """Print the scorecard; whether the models added value. `save`: where the weights go, whatever the answer is.

    Raises:
        UsageError: the horizon is none of detector.outcome_delays_ms, or `since` is no time or lies ahead.
        InputError: a file or a line of it cannot be read, or the picture or the weights cannot be written.
        DependencyMissing: there is no matplotlib for the picture.
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    delays = settings.detector.outcome_delays_ms
    if horizon_ms not in delays:
        raise UsageError(
            f"--horizon-ms {horizon_ms}: no outcome is computed then; detector.outcome_delays_ms has "
            f"{', '.join(map(str, sorted(delays)))}"
        )
    if picture is not None:
        require_plots("--png")
    if not files and since is None:
        since = SINCE
    now_ns = clock()
    since_ns = None if since is None else moment_ns("--since", since, now_ns)
    if since_ns is not None and since_ns >= now_ns:
        raise UsageError(f"--since {since!r}: must lie in the past")
    read = reading.of_files(files) if files else reading.of_kafka(settings.kafka, since_ns or 0, now_ns, horizon_ms)
    found = sums.score(read.decisions, read.trials, read.held, horizon_ms, since_ns)
    span = span_words(since, since_ns, None, found.first_ns, found.last_ns)
    if picture is not None:
        _draw(picture, found, span, stderr)
    if save is not None:
        _save(save, found, now_ns, stderr)
    if as_json:
        print(orjson.dumps(words.as_value(found, read.unreadable, span), option=orjson.OPT_INDENT_2).decode())  # noqa: T201
    else:
        show.show(stdout, found, read.unreadable, span)
    return found.good


def _draw(path: Path, found: Scorecard, span: str, stderr: Console) -> None:
    if not show.plotted(found.cards):
        stderr.print(f"{path} is not written: there is nothing to plot", markup=False)
        return
    from services.cli.scorecard.picture import png

    try:
        path.write_bytes(png(found, span))
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error)) from None


def _save(path: Path, found: Scorecard, now_ns: int, stderr: Console) -> None:
    weights = found.weights(now_ns)
    if weights is None:
        stderr.print(f"{path} is not written: no outcome of any answer is known", markup=False)
        return
    try:
        weights.save(path)
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error)) from None
    followed = sum(card.followed for card in found.cards)
    stderr.print(
        f"{path}: {len(weights.entries)} models, {followed} of them with enough outcomes to be followed; digest "
        f"{weights.digest()}",
        markup=False,
    )
