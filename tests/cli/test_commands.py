"""`arb` as a person and as a script meet it."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CAPTURES = Path(__file__).parents[1] / "collector" / "captures"
CASE = {
    "base": "BTC",
    "buy": {"exchange": "a", "symbol": "BTC-USD", "asks": [[67250.00, 1]]},
    "sell": {"exchange": "b", "symbol": "BTC-USD", "bids": [[67452.50, 1]]},
    "fees_bps": {"buy": 10, "sell": 10},
}


def arb(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARB_")}
    command = [sys.executable, "-m", "services.cli", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, env=clean | environment, timeout=60)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("arb: ")
    return lines[0]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["collect"],
        ["detect"],
        ["decide"],
        ["simulate"],
        ["topics"],
        ["topics", "apply"],
        ["topics", "check"],
        ["topics", "acls"],
        ["doctor"],
        ["health"],
        ["dlq"],
        ["dlq", "list"],
        ["dlq", "show"],
        ["dlq", "replay"],
        ["watch"],
        ["instruments"],
        ["report"],
        ["budget"],
        ["scorecard"],
        ["decisions"],
        ["decision"],
        ["replay"],
        ["replay", "decisions"],
        ["faults"],
        ["verify"],
        ["evaluate"],
        ["explain"],
    ],
    ids=lambda words: " ".join(words) or "arb",
)
def test_every_command_explains_itself(command):
    done = arb(*command, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 100


def test_verify_prints_one_object_and_ends_0():
    done = arb("verify", "kraken", str(CAPTURES / "kraken-book10-btcusd-crossbook.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["checksum_ok"], report["checksum_failed"]) == (301, 0)
    assert report["books"]["BTC-USD"]["state"] == "live"


def test_verify_of_a_folder_says_what_each_recording_is_and_what_damaged_copies_did():
    done = arb("verify", "--all", str(CAPTURES), "--runs", "3")
    assert done.returncode == 0, done.stderr
    assert "checksums 2052 of 2052, 1 of 1 books live" in done.stdout
    assert "single frames of several sessions" in done.stdout
    assert done.stdout.rstrip().endswith("everything verified")


def test_instruments_come_from_the_exchange_and_then_from_the_disk(tmp_path):
    environment = {"ARB_CACHE_DIR": str(tmp_path), "ARB_EXCHANGES_OKX": '{"rest_url": "http://127.0.0.1:9"}'}
    done = arb("instruments", "okx", **environment)
    assert done.returncode == 3
    assert "and there is no copy on disk yet" in done.stderr
    row = {"native": "BTC-USDT", "symbol": "BTC-USDT", "trading": True, "status": "live", "tick_size": "0.1"}
    row |= {"lot_step": "1E-8", "min_size": "0.00001", "min_notional": None, "alias_of": None}
    kept = {"protocol": "okx", "source": "http://127.0.0.1:9", "fetched_ns": 5, "instruments": [row]}
    (tmp_path / "instruments").mkdir()
    (tmp_path / "instruments" / "okx.json").write_text(json.dumps(kept))
    done = arb("instruments", "okx", **environment)
    assert done.returncode == 1, "the other configured symbols are not listed"
    assert "from disk" in done.stderr
    assert "ETH-USDT: not listed" in done.stdout
    done = arb("instruments", "okx", "--symbol", "BTC-USDT", "--json", **environment)
    assert done.returncode == 0
    assert json.loads(done.stdout)["instruments"][0]["tick_size"] == "0.1"


def test_verify_for_people_and_a_capture_that_does_not_verify(tmp_path):
    lines = (CAPTURES / "kraken-book10-btcusd-crossbook.jsonl").read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*lines[:-30], *lines[-20:]]))
    done = arb("verify", "kraken", str(broken))
    assert done.returncode == 1
    assert "checksum failed" in done.stdout
    assert "BTC-USD" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "mtgox", "x"], "unknown exchange 'mtgox'; known: binance"),
        (["verify", "kraken", "/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
        (["collect", "mtgox"], "unknown exchange 'mtgox'"),
        (["detect", "--config", "/nowhere.toml"], "settings file /nowhere.toml does not exist"),
        (["simulate", "--port", "kraken"], "must be NAME=PORT"),
        (["simulate", "--port", "mtgox=5000"], "nothing of that name is served"),
        (["verify", "kraken"], "arb verify takes EXCHANGE and FILE, or --all FOLDER"),
        (["verify", "--all", "/nowhere"], "/nowhere: is not a folder"),
        (["collect", "kraken", "--shard", "3/2"], "--shard '3/2': must be I/N with I from 1 to N"),
        (["collect", "kraken", "--shard", "x"], "--shard 'x': must be I/N"),
        (["instruments", "mtgox"], "unknown exchange 'mtgox'"),
        (["simulate", "--capture", "/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
        (["demo", "--broker", "pigeon", "--seconds", "1"], "unknown kind of broker 'pigeon'; there are external, jars"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_2(arguments, words):
    done = arb(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_one_clear_line_and_2():
    done = arb("detect", ARB_DETECTOR_OPEN_BPS="5")
    assert done.returncode == 2
    assert "no setting detector.open_bps" in one_line(done)


def test_without_a_broker_every_service_says_how_to_get_one_and_ends_3():
    """All at once: each waits its ten seconds."""
    commands = [["detect"], ["decide"], ["collect", "kraken"], ["topics", "check"], ["watch"], ["explain", "r1"]]
    commands += [["report"], ["scorecard"]]
    with ThreadPoolExecutor(len(commands)) as pool:
        for done in pool.map(lambda words: arb(*words, ARB_KAFKA_SERVERS="127.0.0.1:1"), commands):
            assert done.returncode == 3
            assert "ARB_KAFKA_SERVERS" in one_line(done)


def test_evaluate_open_and_reject():
    done = arb("evaluate", "--json", given=json.dumps(CASE))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["profit"] == "67.7975"
    dear = CASE | {"fees_bps": {"buy": 10, "sell": 60}}
    done = arb("evaluate", "--json", given=json.dumps(dear))
    assert done.returncode == 1, "the answer is no"
    assert json.loads(done.stdout)["reasons"] == ["fees"]
    done = arb("evaluate", given=json.dumps(CASE))
    assert "open: 1 for 67.7975 USD net" in done.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "empty; give a case"),
        ("{", "line 1: not JSON"),
        ("[]", "must be a JSON object"),
        (json.dumps({**CASE, "base": "ETH"}), "buy.symbol: BTC-USD is not a pair of ETH"),
        (json.dumps(CASE).replace("67452.5", "NaN"), "NaN is not a number"),
    ],
)
def test_a_bad_case_is_one_clear_line_and_2(given, words):
    done = arb("evaluate", "--json", given=given)
    assert done.returncode == 2
    assert words in one_line(done)
    assert done.stdout == ""
