"""Sockets: replayed captures, the model endpoint through the real client, the process as a whole."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from openai import APIStatusError, AsyncOpenAI, DefaultAsyncHttpx2Client
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from services.simulator import capture
from services.simulator.model import ModelEndpoint
from services.simulator.service import ReplayedExchange, listen, serve_models
from shared.errors import InputError
from shared.messages import RoleAnswer

WS, REST = "wss://stream.binance.com:9443/stream", "https://api.binance.com/api/v3/depth?symbol=X&limit=5"


def line(frame: str, at: float | None = 1.0, url: str = WS, direction: str = "in") -> str:
    return json.dumps({"received_at": at, "direction": direction, "url": url, "frame": frame})


@pytest.fixture
def recording(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [
        line("one", 10.0),
        line("sent", 10.0, direction="out"),
        line("snapshot", 10.05, REST),
        line("two", 10.1),
        line("three", None),
    ]
    file.write_text("\n".join(lines))
    return capture.load(file)


def test_a_recording_keeps_order_timing_and_rest_answers(recording):
    assert recording.exchange == "binance"
    assert [item.frame for item in recording.frames] == ["one", "two", "three"]
    assert [round(item.at_s, 2) for item in recording.frames] == [0.0, 0.1, 0.15]
    assert [item.frame for item in recording.rest["/api/v3/depth?symbol=X&limit=5"]] == ["snapshot"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nonsense", "line 1: not JSON"),
        (line("x") + "\n[]", "line 2: must be a JSON object"),
        ("", "empty; a recording has"),
        (line("x", url="wss://elsewhere.example"), "no frame of a known exchange"),
        (line("x", url=REST), "holds no WebSocket frame"),
    ],
)
def test_a_bad_recording_is_named(tmp_path, content, words):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=words):
        capture.load(file)


async def test_a_recording_is_replayed_to_each_client_with_its_rest_answer(recording):
    replay = ReplayedExchange(recording, speed=10.0, loop=False)
    server, address = await listen(replay, "127.0.0.1", 0)
    async with server:
        async with connect(address["ws_url"]) as socket:
            assert await socket.recv() == "one"
            url = f"{address['rest_url']}/api/v3/depth?limit=5&symbol=X"
            body = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())
            assert body == b"snapshot"
            assert [await socket.recv(), await socket.recv()] == ["two", "three"]
            with pytest.raises(ConnectionClosed, match="end of the recording"):
                await socket.recv()
        await asyncio.wait_for(replay.played.wait(), 5)


def client(base_url: str, **headers: str) -> AsyncOpenAI:
    http_client = DefaultAsyncHttpx2Client(trust_env=False)
    return AsyncOpenAI(base_url=base_url, api_key="k", max_retries=0, http_client=http_client, default_headers=headers)


QUESTION = [
    {"role": "system", "content": "s"},
    {
        "role": "user",
        "content": '{"role":"risk","net_bps":60,"buy":{"age_ms":20,"fits":3.1},"sell":{"age_ms":40,"fits":9}}',
    },
]


async def asked(endpoint: ModelEndpoint, authorization: str = "Bearer k", **request: object):
    base_url, server, task = await serve_models(endpoint, "127.0.0.1", 0)
    one = client(base_url, Authorization=authorization)
    try:
        return await one.chat.completions.create(model="gemini-x", messages=QUESTION, extra_body=request)
    finally:
        await one.close()
        server.should_exit = True
        await task


async def test_a_model_answers_the_contract_and_the_same_question_the_same_way():
    first = await asked(ModelEndpoint(1, 0.0, speed=100))
    again = await asked(ModelEndpoint(1, 0.0, speed=100))
    answer = json.loads(first.choices[0].message.content)
    assert set(answer) == set(RoleAnswer.model_fields)
    assert RoleAnswer.model_validate(answer).liquidity == "enough"
    assert first.usage.prompt_tokens > 0
    assert first.choices[0].message.content == again.choices[0].message.content


async def test_without_a_key_and_with_faults_it_fails_as_providers_do():
    with pytest.raises(APIStatusError) as caught:
        await asked(ModelEndpoint(1, 0.0), authorization="Basic k")
    assert caught.value.status_code == 401
    with pytest.raises(APIStatusError, match="simulated_latency_ms"):
        await asked(ModelEndpoint(1, 0.0), simulated_latency_ms=-1)
    seen = set()
    for seed in range(30):
        try:
            reply = await asked(ModelEndpoint(seed, 1.0, speed=1000))
            try:
                json.loads(reply.choices[0].message.content)
                seen.add("late")
            except ValueError:
                seen.add("invalid")
        except APIStatusError as error:
            seen.add(error.status_code)
    assert seen == {429, 503, "invalid", "late"}


def test_the_process_says_where_it_is_serves_and_ends_on_sigterm(tmp_path):
    truth = tmp_path / "truth.jsonl"
    command = [
        sys.executable,
        "-m",
        "services.cli",
        "simulate",
        "--seed",
        "1",
        "--truth",
        str(truth),
        "--port",
        "kraken=0",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARB_")}
    refused = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "--port 'kraken=0': must be NAME=PORT" in refused.stderr
    process = subprocess.Popen(command[:-2], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        assert set(where["exchanges"]) == {"binance", "coinbase", "kraken", "bybit", "okx"}
        rest = where["exchanges"]["binance"]["rest_url"]
        snapshot = json.loads(urllib.request.urlopen(f"{rest}/api/v3/depth?symbol=BTCUSDT&limit=5", timeout=5).read())
        assert len(snapshot["bids"]) == 5
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert process.stdout is not None
        process.stdout.close()
    assert truth.exists()
