"""`arb decide` as it starts: what ends it with one line before any broker is asked, and what it only warns of."""

import datetime
import json
import os
import time

import pytest

from services.cli.broker import start_broker
from tests.cli.test_commands import arb, one_line
from tests.decider.hostile import KEYS
from tests.integration.test_pipeline import service

NOBODY = "127.0.0.1:1"
MODEL = "gpt-6-luna"
"""Of the role sentiment."""


@pytest.fixture
def environment(tmp_path):
    """Keys of every provider, which nobody reaches."""
    found = {name: "" for name in os.environ if name.endswith("_API_KEY_FILE")} | KEYS
    for name in ("OPENAI", "GEMINI", "DEEPSEEK"):
        found[f"ARB_PROVIDERS_{name}"] = json.dumps({"base_url": f"http://{NOBODY}"})
    return found | {"ARB_DECIDER_STATE_FILE": str(tmp_path / "decider.sqlite"), "ARB_DECIDER_PROBE": "false"}


@pytest.fixture(scope="module")
def mock():
    with start_broker("mock") as running:
        yield running.kafka


@pytest.fixture
def said(mock, environment, tmp_path):
    """`said(OPENAI_API_KEY="")`: warnings of a start up to the line that names its panel."""

    def start(**changes):
        log = tmp_path / "decider.log"
        with service(mock, log, "decide", **environment | {"ARB_LOG_JSON": "true"} | changes):
            end = time.monotonic() + 30
            while not any(line["event"] == "panel" for line in lines(log)):
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)  # another process's log: there is no event to wait for
        return [line for line in lines(log) if line["level"] == "warning"]

    return start


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def ends(days):
    """Settings in which the model's last day is so many days from now."""
    last = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)
    return last, json.dumps({MODEL: {"shutdown_date": str(last)}})


def test_a_model_whose_last_day_has_passed_ends_the_start_with_one_line_and_2(environment):
    last, models = ends(-1)
    done = arb("decide", **environment, ARB_KAFKA_SERVERS=NOBODY, ARB_MODELS=models)
    words = f"roles.sentiment: the last day of {MODEL} was {last}; choose another one for roles.sentiment.model"
    assert one_line(done) == f"arb: {words}"
    assert done.returncode == 2


def test_a_key_of_another_provider_ends_the_start_with_one_line_and_2_and_is_not_shown(environment):
    key = KEYS["GEMINI_API_KEY"]
    done = arb("decide", **environment | {"OPENAI_API_KEY": key}, ARB_KAFKA_SERVERS=NOBODY)
    assert one_line(done).startswith("arb: providers.openai: the key in OPENAI_API_KEY (")
    assert "does not look like one" in done.stderr
    assert key not in done.stderr
    assert done.returncode == 2


def test_a_damaged_weights_file_ends_the_start_with_one_line_and_2(environment, tmp_path):
    file = tmp_path / "weights.json"
    file.write_text("{")
    done = arb("decide", **environment, ARB_KAFKA_SERVERS=NOBODY, ARB_DECIDER_WEIGHTS_FILE=str(file))
    assert one_line(done).startswith(f"arb: weights file {file}: ")
    assert done.returncode == 2


def of(warnings, event):
    return [line for line in warnings if line["event"] == event]


def test_a_model_that_ends_soon_and_roles_without_a_key_are_warned_of(said):
    last, models = ends(10)
    fallback = json.dumps({"fallback": {"provider": "openai", "model": "gpt-5.4-mini"}})
    warnings = said(GEMINI_API_KEY="", DEEPSEEK_API_KEY="", ARB_MODELS=models, ARB_ROLES_VOLATILITY=fallback)
    (soon,) = of(warnings, "model ends soon")
    assert f"roles.sentiment: {MODEL} ends on {last}" in soon["words"]
    (mute,) = of(warnings, "roles without a key abstain")
    assert mute["roles"] == ["risk"], "volatility has a fallback that can be asked"
    assert mute["set"] == "GEMINI_API_KEY, DEEPSEEK_API_KEY"
    assert "without the risk role nothing is executed" in mute["risk"]


def test_without_any_key_it_says_that_decisions_rest_on_rules_only(said):
    (told,) = of(said(**dict.fromkeys(KEYS, "")), "no provider has a key: decisions rest on rules only")
    assert told["set_one_of"] == "OPENAI_API_KEY, GEMINI_API_KEY, DEEPSEEK_API_KEY"


def test_with_all_keys_and_no_model_that_ends_it_warns_of_neither(said):
    _, models = ends(60)
    warnings = said(ARB_MODELS=models)
    assert of(warnings, "model ends soon") == of(warnings, "roles without a key abstain") == []
