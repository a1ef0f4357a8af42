"""Whether a service lives and is ready, and the server that says so, over real HTTP."""

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics

from services.cli import health as asking
from shared import health
from shared.errors import SettingsError
from shared.health import Check, Health, Server

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def served(one: Health) -> Iterator[int]:
    server = Server(one, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type") or "", answer.read()


# ---------------------------------------------------------------- live and ready


def test_a_service_lives_while_it_starts_and_while_its_loop_turns():
    clock = Clock()
    one = Health("detector", stuck_s=10.0, clock=clock)
    clock.now += health.START_S
    assert one.live() == Check("loop", True, "starting for 60.0 s")
    clock.now += 1
    assert not one.live().ok
    one.beat()
    assert one.live() == Check("loop", True, "turned 0.0 s ago")
    clock.now += 10.1
    assert one.live() == Check("loop", False, "turned 10.1 s ago")
    one.beat()
    assert one.live().ok


def test_a_service_is_not_ready_before_every_check_has_said_so():
    one = Health("detector", ("kafka", "assignment"))
    one.beat()
    one.watch("kafka", lambda: (True, "3 brokers"))
    assert [(check.check, check.ok) for check in one.ready()] == [
        ("loop", True),
        ("kafka", True),
        ("assignment", False),
    ]
    one.watch("assignment", lambda: (True, "standby"))
    assert all(check.ok for check in one.ready())


def test_a_check_that_fails_is_a_failed_check():
    one = Health("detector", ("kafka",))
    one.watch("kafka", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert one.ready()[1] == Check("kafka", False, "the check failed: ZeroDivisionError: division by zero")


def test_a_check_that_was_not_announced_is_refused():
    with pytest.raises(KeyError, match="other"):
        Health("detector", ("kafka",)).watch("other", lambda: (True, ""))


async def test_the_event_loop_beats_and_its_lag_is_measured():
    one = Health("decider")
    shown = asyncio.Event()
    before = REGISTRY.get_sample_value("arb_loop_lag_ms_count")
    async with one.beating(shown.set):
        await asyncio.wait_for(shown.wait(), WAIT_S)
    assert one.live().words.startswith("turned")
    assert REGISTRY.get_sample_value("arb_loop_lag_ms_count") == before + 1


# ---------------------------------------------------------------- over HTTP


def test_what_is_live_and_ready_is_200_and_what_is_not_is_503():
    clock = Clock()
    one = Health("detector", ("kafka",), clock=clock)
    with served(one) as port:
        one.beat()
        status, kind, body = ask(port, "/healthz")
        assert (status, kind) == (200, "application/json")
        assert json.loads(body)["live"] is True
        status, _, body = ask(port, "/readyz")
        assert status == 503
        assert json.loads(body) == {
            "service": "detector",
            "ready": False,
            "checks": [
                {"check": "loop", "ok": True, "words": "turned 0.0 s ago"},
                {"check": "kafka", "ok": False, "words": "not known yet: starting"},
            ],
        }
        one.watch("kafka", lambda: (True, "1 broker"))
        assert ask(port, "/readyz")[0] == 200
        clock.now += 11
        assert ask(port, "/healthz")[0] == 503
        assert ask(port, "/readyz")[0] == 503, "what is stuck does no job"


def test_metrics_come_in_both_formats_and_mirror_the_checks():
    one = Health("detector", ("kafka",))
    one.beat()
    health.serve(one, "127.0.0.1", 0)
    with served(one) as port:
        status, kind, body = ask(port, "/metrics")
        assert (status, kind.partition(";")[0]) == (200, "text/plain")
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_metrics(body.decode())
            for sample in family.samples
        }
        assert samples["arb_ready", "kafka"] == 0
        assert samples["arb_ready", "loop"] == 1
        assert ("arb_service_info", "detector", "0.1.0") in samples
        accept = "application/openmetrics-text;version=1.0.0"
        status, kind, body = ask(port, "/metrics", Accept=accept)
        assert kind.startswith("application/openmetrics-text")
        assert "arb_ready" in {family.name for family in open_metrics(body.decode())}


def test_other_paths_and_methods_are_refused_and_head_has_no_body():
    with served(Health("detector")) as port:
        assert ask(port, "/")[0] == 404
        assert ask(port, "/healthz/../secret")[0] == 404
        assert ask(port, "/metrics?name[]=x")[0] == 200
        assert ask(port, "/healthz", "POST")[0] == 501
        assert ask(port, "/healthz", "DELETE")[0] == 501
        status, _, body = ask(port, "/healthz", "HEAD")
        assert (status, body) == (200, b"")


def test_many_clients_that_say_nothing_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(health, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(health, "REQUEST_S", 3600.0)
    one = Health("detector")
    with served(one) as port, contextlib.ExitStack() as stack:
        for _ in range(12):
            silent = stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port))))
            silent.sendall(b"GET /metrics HTTP/1.1\r\nX-")
        assert ask(port, "/healthz")[0] == 200
        monkeypatch.setattr(health, "REQUEST_S", 0.1)
        silent.settimeout(WAIT_S)
        assert silent.recv(1) == b"", "cut when its time was over"


def test_a_client_that_does_not_read_is_cut(monkeypatch):
    monkeypatch.setattr(health, "REQUEST_S", 0.3)
    monkeypatch.setattr(health, "choose_encoder", lambda accept: (lambda registry: b"x" * 50_000_000, "text/plain"))
    with served(Health("detector")) as port:
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as deaf:
            deaf.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            end = time.monotonic() + WAIT_S
            while any(thread.name.endswith("(process_request_thread)") for thread in threading.enumerate()):
                assert time.monotonic() < end
                time.sleep(0.02)  # another thread's end: there is no event to wait for


def test_a_service_that_is_stuck_still_answers():
    one = Health("detector", stuck_s=0.0)
    one.beat()
    with served(one) as port:
        time.sleep(0.01)
        assert ask(port, "/healthz")[0] == 503


def test_port_0_serves_nothing_and_a_taken_one_is_named():
    assert health.serve(Health("detector"), "127.0.0.1", 0) is None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"metrics.port {port} on 127.0.0.1: Address already in use"):
            health.serve(Health("detector"), "127.0.0.1", port)


def test_a_served_port_answers_until_the_process_ends():
    server = health.serve(Health("detector"), "127.0.0.1", free_port())
    assert server is not None
    try:
        assert ask(server.server_address[1], "/healthz")[0] == 200
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- arb health


def test_arb_health_ends_as_the_service_is(capsys):
    one = Health("detector", ("kafka",))
    one.beat()
    with served(one) as port:
        url = f"http://127.0.0.1:{port}"
        assert asking.run(url, ready=False, as_json=False) == 0
        assert capsys.readouterr().out.startswith("detector is live\nok   loop: turned")
        assert asking.run(url, ready=True, as_json=False) == 1
        out = capsys.readouterr().out
        assert "detector is not ready" in out
        assert "FAIL kafka: not known yet: starting" in out
        assert asking.run(url + "/", ready=True, as_json=True) == 1
        assert json.loads(capsys.readouterr().out)["ready"] is False


def test_arb_health_says_when_nothing_answers_or_somebody_else(capsys):
    port = free_port()
    assert asking.run(f"http://127.0.0.1:{port}", ready=False, as_json=False) == 3
    assert f"no answer from http://127.0.0.1:{port}/healthz" in capsys.readouterr().err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def answer() -> None:
            with contextlib.closing(other.accept()[0]) as client:
                client.recv(1000)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")

        thread = threading.Thread(target=answer)
        thread.start()
        assert asking.run(f"http://127.0.0.1:{other.getsockname()[1]}", ready=False, as_json=False) == 3
        thread.join()
    assert "not as a service of ours" in capsys.readouterr().err
    assert asking.run("127.0.0.1:1", ready=False, as_json=False) == 2


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"ARB_METRICS_HOST": "0.0.0.0", "ARB_METRICS_PORT": "9100"}, ("127.0.0.1", "9100")),
        ({"ARB_METRICS_HOST": "::", "ARB_METRICS_PORT": "9100"}, ("127.0.0.1", "9100")),
        ({"ARB_METRICS_HOST": "10.1.2.3", "ARB_METRICS_PORT": "0"}, ("10.1.2.3", "0")),
    ],
)
def test_the_variables_say_where(variables, found):
    assert asking.address(variables) == found


def test_without_variables_the_settings_say_where(monkeypatch, capsys):
    monkeypatch.delenv("ARB_METRICS_PORT", raising=False)
    monkeypatch.delenv("ARB_METRICS_HOST", raising=False)
    assert asking.address({})[0] == "127.0.0.1"
    monkeypatch.setenv("ARB_METRICS_PORT", "0")
    assert asking.run(None, ready=False, as_json=False) == 2
    assert "metrics.port is 0" in capsys.readouterr().err
    monkeypatch.setenv("ARB_METRICS_HOST", "127.0.0.1")
    monkeypatch.setenv("ARB_METRICS_PORT", "many")
    assert asking.run(None, ready=False, as_json=False) == 2


def test_a_container_can_ask_without_importing_what_is_large():
    names = "typer", "pydantic", "rich", "confluent_kafka", "structlog"
    code = f"import sys, services.cli.health; sys.exit(any(name in sys.modules for name in {names!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_gauges_of_checks_are_only_set_when_asked():
    one = Health("simulator", ("serving",))
    one.export()
    assert REGISTRY.get_sample_value("arb_ready", {"check": "serving"}) == 0
    one.watch("serving", lambda: (True, "5 exchanges"))
    one.export()
    assert REGISTRY.get_sample_value("arb_ready", {"check": "serving"}) == 1
