"""`arb faults`: what goes wrong in a running simulator, through its control endpoint."""

from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console

from shared.errors import DependencyMissing, UsageError

if TYPE_CHECKING:
    import httpx2

faults_app = typer.Typer(
    help="Faults of a running simulator: list, add, clear. See docs/rehearsing-outages.md.", no_args_is_help=True
)

DEFAULT_URL = "http://127.0.0.1:9099"
TIMEOUT_S = 5.0

Url = Annotated[
    str, typer.Option("--url", help='Control endpoint: "control_url" of the line that `arb simulate` prints.')
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

stdout = Console(soft_wrap=True, highlight=False)


@faults_app.command("list")
def list_faults(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """What is scheduled, active and over, and how often each fault has struck."""
    answer = _ask("GET", url, "/faults")
    if as_json:
        _print_json(answer)
    elif not answer["faults"]:
        stdout.print("no faults")
    else:
        _print_rows(answer["faults"])


@faults_app.command("add")
def add_fault(
    kind: Annotated[
        str,
        typer.Argument(
            help="drop, duplicate, reorder, corrupt, stall, close, refuse, rate_limit, cross, announce, halt, silent."
        ),
    ],
    exchange: Annotated[str, typer.Argument(help='One that is simulated, or "*" (quoted) for all.')],
    symbol: Annotated[str | None, typer.Option(help="Canonical, such as BTC-USD; default: all.")] = None,
    at_s: Annotated[float | None, typer.Option(help="Begin after so many seconds; default: now.")] = None,
    for_s: Annotated[float | None, typer.Option(help="Seconds that it lasts; default: until cleared.")] = None,
    share: Annotated[float | None, typer.Option(help="Share of the frames that are struck, 0 to 1.")] = None,
    status: Annotated[int | None, typer.Option(help="HTTP status of refuse (503) and rate_limit (429).")] = None,
    retry_after_s: Annotated[int | None, typer.Option(help="Retry-After of refuse and rate_limit.")] = None,
    notice_s: Annotated[float | None, typer.Option(help="Of announce: seconds until the connection closes.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Let something go wrong. Ends 2 if the simulator does not know what is meant."""
    fault = {
        "kind": kind,
        "exchange": exchange,
        "symbol": symbol,
        "at_s": at_s,
        "for_s": for_s,
        "share": share,
        "status": status,
        "retry_after_s": retry_after_s,
        "notice_s": notice_s,
    }
    answer = _ask("POST", url, "/faults", {name: value for name, value in fault.items() if value is not None})
    if as_json:
        _print_json(answer)
    else:
        (number,) = answer["ids"]
        stdout.print(f"fault {number}: {kind} on {exchange}", markup=False)


@faults_app.command("clear")
def clear_faults(
    number: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of `arb faults list`; default: all.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Take away one fault, or all."""
    if number is not None and not number.isdigit():
        raise UsageError(f"no fault {number!r}: an id is a number of `arb faults list`")
    answer = _ask("DELETE", url, "/faults" if number is None else f"/faults/{number}")
    if as_json:
        _print_json(answer)
    elif not answer["cleared"]:
        stdout.print("no faults")
    else:
        _print_rows(answer["cleared"])


def _ask(method: str, url: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """The control endpoint's answer.

    Raises:
        UsageError: no such address can be, or the endpoint says what is wrong with the request.
        DependencyMissing: no simulator answers there.
    """
    import httpx2  # only this command needs it

    body = None if content is None else orjson.dumps(content)
    try:
        with httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as http:  # no proxy for this machine
            answer = http.request(method, url.rstrip("/") + path, content=body)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise UsageError(f"--url {url}: {error}") from None
    except httpx2.HTTPError as error:
        raise _missing(url, str(error) or type(error).__name__) from None
    return _read(url, path, answer)


def _read(url: str, path: str, answer: "httpx2.Response") -> dict[str, Any]:
    try:
        found = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise _missing(url, f"HTTP {answer.status_code} for {path}")
    if answer.is_success and found.keys() & {"faults", "ids", "cleared"}:
        return found
    if answer.status_code in ((400,) if path == "/faults" else (404,)) and isinstance(found.get("error"), str):
        raise UsageError(found["error"])
    raise _missing(url, f"HTTP {answer.status_code} for {path}")


def _missing(url: str, problem: str) -> DependencyMissing:
    return DependencyMissing(
        f"no simulator's control endpoint at {url} ({problem}); start one with `arb simulate --port control=9099`, "
        'or give --url the "control_url" of its first line'
    )


def _print_json(answer: dict[str, Any]) -> None:
    print(orjson.dumps(answer).decode())  # noqa: T201


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """One line a fault; what was not given is left out."""
    apart = ("id", "state", "kind", "exchange", "struck")
    for row in rows:
        given = "".join(f", {name} {value}" for name, value in row.items() if name not in apart)
        words = f"{row['id']:>3}  {row['state']:9}  {row['kind']} on {row['exchange']}{given}; struck {row['struck']}"
        stdout.print(words, markup=False)
