"""Keys are in no text that goes through `redact`, and ordinary text goes through it as it is."""

import base64
import json
import logging
import subprocess
import sys
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from shared import secrets
from shared.secrets import MASK, redact

KEY = "sk-Planted/secret+0123456789=="


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(secrets, "_written", {})


def know(*values: str) -> None:
    for value in values:
        secrets.register(SecretStr(value))


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        f"Bearer {KEY}",
        quote(KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d"),
        KEY.replace("/", "\\/"),
        base64.b64encode(KEY.encode()).decode(),
        base64.urlsafe_b64encode(KEY.encode()).decode(),
        base64.b64encode(f"user:{KEY}".encode()).decode(),
        base64.b64encode(f"api:{KEY}\n".encode()).decode(),
        base64.b64encode(f"me:{KEY}xyz".encode()).decode(),
        json.dumps({"headers": {"authorization": f"Bearer {KEY}"}}),
        repr({KEY: [KEY.encode()]}),
    ],
)
def test_a_known_key_is_found_in_every_usual_writing(written):
    know(KEY)
    cleaned = redact(f"before {written} behind")
    assert cleaned.startswith("before ")
    assert cleaned.endswith(" behind")
    assert MASK in cleaned
    assert "secret" not in cleaned
    core = base64.b64encode(KEY.encode()).decode()[4:-4]
    assert core not in cleaned


@given(
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=secrets.SHORTEST, max_size=60),
    before=st.text(max_size=20),
    behind=st.text(max_size=20),
)
def test_no_key_survives_wherever_it_stands(key, before, behind):
    secrets._written.clear()
    secrets.register(SecretStr(key), certain=True)
    for written in (key, json.dumps(key)[1:-1], quote(key, safe=""), quote(key)):
        assert written not in redact(f"{before}{written}{behind}").replace(MASK, "\0")
    raw = f"{before}:{key}:{behind}".encode()
    alphabets = (base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode())
    assert all(MASK in redact(text) for text in alphabets), "in the middle of something longer, too"


@given(st.text(max_size=200))
def test_text_without_a_key_is_left_as_it_is(text):
    secrets._written.clear()
    if not any(start in text.lower() for start in secrets._SHAPES_START):
        assert redact(text) == text
    know("Zz9#unlikely#9zZ")
    if not any(start in text.lower() for start in secrets._SHAPES_START):
        assert redact(text) == text


@given(st.text(max_size=100))
def test_redacting_twice_is_redacting_once_and_never_makes_text_longer(text):
    secrets._written.clear()
    know(KEY, "another-key-123")
    once = redact(text + KEY + text)
    assert redact(once) == once
    assert len(once) <= len(text + KEY + text)


def test_a_key_that_begins_like_another_leaves_no_rest_of_it():
    know("abcdef-123", "abcdef-123-and-more")
    assert redact("x abcdef-123-and-more x abcdef-123 x") == f"x {MASK} x {MASK} x"


def test_a_value_too_short_for_a_secret_does_not_eat_words():
    know("x", "test", "", "volatility")
    secrets.register(SecretStr("test"), certain=True)
    assert redact("this is a test of x and volatility") == "this is a test of x and volatility"
    secrets.register(SecretStr("volatility"), certain=True)
    assert redact("this is a test of x and volatility") == f"this is a test of x and {MASK}"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("key sk-proj-abcDEF_0123456789 refused", f"key {MASK} refused"),
        ("key AIzaSyA-0123456789_0123456789abcdef", f"key {MASK}"),
        ("hs_0123456789abcdef", MASK),
        ("Authorization: Bearer eyJhbGciOi.JIUzI1NiJ9._x-~+/=", f"Authorization: Bearer {MASK}"),
        ("AUTHORIZATION: BEARER 0123456789abcdef", f"AUTHORIZATION: BEARER {MASK}"),
        ("hs_req_0123456789abcdef", "hs_req_0123456789abcdef"),
        ("the risk-sentiment-and-volatility roles", "the risk-sentiment-and-volatility roles"),
        ("task-0123456789abcdef", "task-0123456789abcdef"),
        ("sk-short", "sk-short"),
        ("bearer of bad news", "bearer of bad news"),
        ("BTC-USDT at kraken", "BTC-USDT at kraken"),
    ],
)
def test_what_looks_like_a_key_is_one_known_or_not(text, cleaned):
    assert redact(text) == cleaned


# ---------------------------------------------------------------- in the log


class Shows:
    def __repr__(self) -> str:
        return f"<client with {KEY}>"


class Fails:
    def __repr__(self) -> str:
        raise ValueError(KEY)


def test_an_event_is_redacted_however_deep():
    know(KEY)
    seen = {
        "event": f"asked with {KEY}",
        KEY: 1,
        "deep": [{"a": (KEY, 5, None, True, 1.5), "b": {KEY}}],
        "bytes": KEY.encode(),
        "error": RuntimeError(KEY),
        "object": Shows(),
        "fails": Fails(),
        "plain": "BTC-USDT",
    }
    cleaned = secrets.redact_event(None, "info", dict(seen))
    assert KEY not in repr(cleaned)
    assert cleaned["deep"] == [{"a": (MASK, 5, None, True, 1.5), "b": {MASK}}]
    assert cleaned["object"] == f"<client with {MASK}>"
    assert cleaned["fails"] == "<Fails: repr failed with ValueError>"
    assert cleaned["plain"] == "BTC-USDT"


def test_objects_without_a_key_stay_what_they_are():
    know(KEY)
    held = SecretStr(KEY)
    kept = {"secret": held, "path": structlog}
    assert secrets.redact_event(None, "info", dict(kept)) == kept


def test_an_event_that_contains_itself_ends():
    know(KEY)
    event: dict[str, object] = {"key": KEY}
    event["self"] = event
    assert KEY not in repr(secrets.redact_event(None, "info", event))


PROCESS = """
import asyncio, logging, sys, warnings
import structlog
from pydantic import SecretStr
from shared import secrets, settings
from shared.process import setup_logging

KEY = "qq-" + "of-no-known-shape"
secrets.register(SecretStr(KEY))
loaded = settings.load().log.model_copy(update={"json_lines": sys.argv[1] == "json"})
setup_logging(loaded)
log = structlog.get_logger()

def fail():
    local = "a local " + "variable"
    raise ValueError(f"refused {KEY}")

log.info("asked", key=KEY, headers={"authorization": f"Bearer {KEY}"})
try:
    fail()
except ValueError:
    log.exception("failed")
logging.getLogger("asyncio").warning("lost %s", KEY)
try:
    fail()
except ValueError:
    logging.getLogger("somebody").exception("failed elsewhere")
fail()
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_nothing_that_a_process_logs_or_dies_of_shows_keys_or_locals(form):
    done = subprocess.run([sys.executable, "-c", PROCESS, form], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "of-no-known-shape" not in done.stderr.replace('KEY = "qq-" + "of-no-known-shape"', "")
    assert "a local variable" not in done.stderr
    assert done.stderr.count(f"ValueError: refused {MASK}") == 3, "the words are there, but for the key"
    assert f"lost {MASK}" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 3
    if form == "json":
        first = json.loads(done.stderr.splitlines()[0])
        assert (first["event"], first["key"], first["headers"]) == ("asked", MASK, {"authorization": f"Bearer {MASK}"})


def test_records_of_other_libraries_are_formatted_without_keys():
    know(KEY)
    record = logging.LogRecord("httpx2", logging.INFO, "x.py", 1, "HTTP %s", (KEY,), None)
    assert secrets.RedactingFormatter().format(record) == f"HTTP {MASK}"
