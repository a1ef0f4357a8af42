"""`arb health`: ask a service how it is.

Containers ask every few seconds, so this must start fast: `python -m services.cli.health` imports nothing that is
large, and settings are only read where no variable names the port.
"""

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import SettingsError

WAIT_S = 3.0
EVERY_ADDRESS = ("0.0.0.0", "::", "")


def address(environ: Mapping[str, str], config: Path | None = None) -> tuple[str, str]:
    """Host and port where the service of these settings answers.

    Raises:
        SettingsError: a setting is wrong.
    """
    host, port = environ.get("ARB_METRICS_HOST"), environ.get("ARB_METRICS_PORT")
    if host is None or port is None or config is not None:
        from shared import settings

        found = settings.load(config).metrics
        host, port = found.host, str(found.port)
    return ("127.0.0.1" if host in EVERY_ADDRESS else host), port


def run(url: str | None, *, ready: bool, as_json: bool, config: Path | None = None) -> int:
    """Ask and print; the exit code: 0 well, 1 not well, 2 no port is set, 3 nothing answers.

    Raises:
        SettingsError: a setting is wrong.
    """
    if url is None:
        host, port = address(os.environ, config)
        if not port.isdecimal():
            return _fail(2, f"ARB_METRICS_PORT {port!r}: must be a number from 0 to 65535")
        if port == "0":
            return _fail(2, "metrics.port is 0, so the service serves no health; set ARB_METRICS_PORT or give --url")
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if not url.startswith(("http://", "https://")):
        return _fail(2, f"--url {url!r}: must begin with http:// or https://, such as http://127.0.0.1:9100")
    asked = f"{url.rstrip('/')}/{'readyz' if ready else 'healthz'}"
    # no proxy: what is asked is beside us
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            with opener.open(asked, timeout=WAIT_S) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                status, body = refused.code, refused.read()
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", error)
        return _fail(3, f"no answer from {asked}: {reason}; does the service run with this port?")
    try:
        report: dict[str, Any] = json.loads(body)
        lines = [f"{'ok  ' if one['ok'] else 'FAIL'} {one['check']}: {one['words']}" for one in report["checks"]]
        service = report["service"]
    except (ValueError, KeyError, TypeError):
        return _fail(3, f"{asked} answered HTTP {status}, but not as a service of ours: is it another program's port?")
    words = ("ready" if ready else "live") if status == 200 else ("not ready" if ready else "stuck")
    print(body.decode().strip() if as_json else "\n".join([f"{service} is {words}", *lines]))  # noqa: T201
    return 0 if status == 200 else 1


def _fail(code: int, words: str) -> int:
    print(f"arb: {words}", file=sys.stderr)  # noqa: T201
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """The command without the others."""
    parser = argparse.ArgumentParser(prog="python -m services.cli.health", description="Ask a service how it is.")
    parser.add_argument("--ready", action="store_true")
    parser.add_argument("--url")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        return run(given.url, ready=given.ready, as_json=given.json)
    except SettingsError as error:
        return _fail(2, str(error))


if __name__ == "__main__":
    sys.exit(main())
