"""Model servers that others wrote, to try the decider against: llmock, and LiteLLM's proxy in front of it.

Each runs in a virtual environment of its own in the cache folder (`benchmarks/other_env.py`), with all its packages
pinned in `requirements/`. llmock is a small install and always made; LiteLLM takes minutes and hundreds of megabytes, so
only ARB_TEST_LITELLM=1 makes it. Once it is there it is used.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.other_env import is_prepared, prepare
from services.cli.jars import free_port, tied_to_parent
from services.decider import judge
from services.decider.budget import Budget
from services.decider.decide import Decider, Newest
from services.decider.guards import Guards
from services.decider.judge import Terms
from services.decider.models import Models
from services.decider.role import Desk
from services.decider.state import State
from services.decider.trials import Trials
from shared import settings
from shared.messages import Audit, Decision, Opportunity, RoleRecord
from shared.settings import ModelChoice, ProviderSettings, RoleSettings, Settings
from tests import samples

LLMOCK = "llmock-0.2.2"
LITELLM = "litellm-1.109.1"
REQUIREMENTS = Path(__file__).with_name("requirements")
START_S = 90.0

STRICT = "strict"
"""The name of a model for which LiteLLM refuses fields that it does not know."""

ANSWER = {
    "p_edge": 0.8,
    "view": "buy",
    "veto": False,
    "volatility": 0.1,
    "code": "OK",
    "pressure": "buyers",
    "liquidity": "ample",
    "manipulation": "low",
    "note": "",
}
"""A yes from whichever role."""

Behaviour = dict[str, Any]
"""One step of a llmock scenario."""


# ---------------------------------------------------------------- environments


def _packages(name: str) -> tuple[str, ...]:
    lines = (REQUIREMENTS / f"{name.partition('-')[0]}.txt").read_text().splitlines()
    return ("--no-deps", *(line for line in lines if not line.startswith("#")))


def python_of(name: str, *, wanted: bool = True) -> Path:
    """Python of LLMOCK's or LITELLM's environment, which is made if it is not there.

    Raises:
        RuntimeError: it is not there and not wanted, or cannot be made; says what to do or what pip said.
    """
    packages = _packages(name)
    if not wanted and not is_prepared(name, packages):
        raise RuntimeError(f"{name} is not installed; ARB_TEST_LITELLM=1 installs it into the cache (once, minutes)")
    return prepare(name, packages)


def litellm_wanted() -> bool:
    """Whether LiteLLM may be installed."""
    return os.environ.get("ARB_TEST_LITELLM") == "1"


@contextlib.contextmanager
def _running(command: list[str], alive: str, extra: Mapping[str, str]) -> Iterator[None]:
    """A server as a process, from the moment it answers."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ARB_", "OPENAI_", "LITELLM_"))}
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            tied_to_parent(command), env={**environment, **extra}, stdin=subprocess.DEVNULL, stdout=words, stderr=words
        )
        try:
            end = time.monotonic() + START_S
            while not _answers(alive):
                if process.poll() is not None or time.monotonic() > end:
                    words.seek(0)
                    said = words.read().decode(errors="replace")[-2000:]
                    raise AssertionError(f"{' '.join(command[:2])} did not come up:\n{said}")
                time.sleep(0.05)  # another process's start: there is no event to wait for
            yield
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


# ---------------------------------------------------------------- llmock


@dataclass(frozen=True)
class Llmock:
    """A running llmock; `url` without a path."""

    url: str

    @property
    def base_url(self) -> str:
        """For a provider's settings."""
        return f"{self.url}/v1"

    def script(self, *behaviours: Behaviour) -> None:
        """Queue behaviours: of each type the first that matches a request is taken."""
        self._call("POST", "/_llmock/scenario", {"behaviors": list(behaviours)})

    def reset(self) -> None:
        """Forget requests and behaviours."""
        self._call("POST", "/_llmock/reset")

    def clear(self) -> None:
        """Forget behaviours only."""
        self._call("DELETE", "/_llmock/scenario")

    def asked(self, model: str = "") -> list[dict[str, Any]]:
        """Completions that it was asked for, oldest first; of models whose names begin so."""
        found = self._call("GET", "/_llmock/requests")["requests"]
        return [one for one in found if one["method"] == "POST" and (one["model"] or "").startswith(model)]

    def verdict(self) -> dict[str, Any]:
        """What it thinks of its client."""
        return self._call("GET", "/_llmock/verdict")

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=10) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer


@contextlib.contextmanager
def llmock() -> Iterator[Llmock]:
    """llmock on the loopback interface.

    Raises:
        RuntimeError: it cannot be installed.
    """
    python, port = python_of(LLMOCK), free_port()
    command = [str(python.with_name("llmock")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with _running([*_by(python, command), "--log-level", "warning"], f"http://127.0.0.1:{port}/_llmock/scenario", {}):
        yield Llmock(f"http://127.0.0.1:{port}")


def _by(python: Path, command: list[str]) -> list[str]:
    """Run a script by its environment's Python: its own first line names the folder where it was made."""
    return [str(python), "-I", *command]


def reply(model: str, **changes: object) -> Behaviour:
    """Always this answer."""
    text = json.dumps(ANSWER | changes)
    return {"type": "reply", "text": text, "match": {"model": model}, "times": None}


def delay(model: str, seconds: float, times: int | None = None) -> Behaviour:
    """Answer only after so long."""
    return {"type": "delay", "seconds": seconds, "match": {"model": model}, "times": times}


def fail(model: str, status: int, times: int | None = None, **more: object) -> Behaviour:
    """An HTTP error; `more` as llmock names it: retry_after, code, message."""
    return {"type": "fail", "status": status, "match": {"model": model}, "times": times, **more}


# ---------------------------------------------------------------- LiteLLM


@contextlib.contextmanager
def litellm(upstreams: Mapping[str, Sequence[str]], behind: Llmock, key: str) -> Iterator[str]:
    """Base URL of a LiteLLM proxy in front of llmock.

    Args:
        upstreams: What it calls the models that it offers, each with the names of its deployments at llmock.
        key: The only one that it takes.

    Raises:
        RuntimeError: it is not installed and not wanted, or cannot be installed.
    """
    python = python_of(LITELLM, wanted=litellm_wanted())
    port = free_port()
    params = {"api_base": behind.base_url, "api_key": "sk-upstream-0123456789"}
    # It refuses fields that it does not know of the upstream (DeepSeek's `thinking`) unless told to leave them out.
    offered = [
        {"model_name": alias, "litellm_params": {"model": f"openai/{name}", "drop_params": alias != STRICT, **params}}
        for alias, names in upstreams.items()
        for name in names
    ]
    config = {
        "model_list": offered,
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "router_settings": {"num_retries": 0, "allowed_fails": 0, "cooldown_time": 30},
        "general_settings": {"master_key": key},
    }
    extra = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}  # it asks the network for neither
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        command = [str(python.with_name("litellm")), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
        with _running(_by(python, command), f"http://127.0.0.1:{port}/health/liveliness", extra):
            yield f"http://127.0.0.1:{port}/v1"


# ---------------------------------------------------------------- the decider's real parts


@dataclass
class Bench:
    """A decider with everything real: clients, guards, money, panel, clock. Its monotonic clock can be put forward."""

    settings: Settings
    keys: Mapping[str, str]
    ahead_s: float = 0.0
    state: State = field(init=False)
    models: Models = field(init=False)
    desk: Desk = field(init=False)
    newest: Newest = field(init=False)
    decider: Decider = field(init=False)

    async def __aenter__(self) -> "Bench":
        self.state = State(None)
        self.models = Models(self.settings, self.keys)
        trials = Trials(self.settings, self.state.rolled_back(), self.state.roll_back)
        budget = Budget(self.settings, self.state)
        self.desk = Desk(
            self.settings, self.models, Guards(self.settings), budget, trials, time.time_ns, self._monotonic
        )
        self.newest = Newest()
        self.decider = Decider(Terms.of(self.settings), self.desk, self.newest)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.models.close()
        self.state.close()

    def _monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    async def decide(self, **changes: Any) -> tuple[Decision, Audit]:
        """A new opportunity, decided as the service does it."""
        found = opportunity(**changes)
        self.newest.take(found, self.desk.clock())
        case = self.decider.quick(found) or await self.decider.consider(found)
        decision = self.decider.conclude(case)
        return decision, judge.audit(case, decision)


def configured(
    base_urls: Mapping[str, str],
    roles: Mapping[str, Mapping[str, Any]] | None = None,
    guards: Mapping[str, Any] | None = None,
    **decider: Any,
) -> Settings:
    """The default settings with these providers' base URLs.

    Args:
        roles: What to change of a role's table, such as its provider.
        guards: What to change of `[guards]`.
        decider: What to change of `[decider]`. Answers are never used again unless it says so.
    """
    loaded = settings.load()
    providers = {
        name: ProviderSettings.model_validate({**loaded.providers[name].model_dump(), "base_url": url})
        for name, url in base_urls.items()
    }
    chosen = {
        role: RoleSettings.model_validate({**found.model_dump(), **(roles or {}).get(role, {})})
        for role, found in loaded.roles.items()
    }
    return loaded.model_copy(
        update={
            "providers": {**loaded.providers, **providers},
            "roles": chosen,
            "guards": loaded.guards.model_copy(update=dict(guards or {})),
            "decider": loaded.decider.model_copy(
                update={"verdict_ttl_ms": 0, "max_minute_usd": Decimal(100), "threshold": 900, **decider}
            ),
        }
    )


def opportunity(**changes: Any) -> Opportunity:
    """One that passes the rules, seen just now."""
    now_ns = time.time_ns()
    return samples.opportunity(now_ns, **{"opportunity_id": uuid.uuid4().hex, "detected_ns": now_ns, **changes})


def outcomes(decision: Decision) -> dict[str, str]:
    """What became of each role's call."""
    return {record.role: record.outcome for record in decision.roles}


def record_of(decision: Decision, role: str) -> RoleRecord:
    """The record of one role."""
    return next(record for record in decision.roles if record.role == role)


def another(provider: str, model: str) -> dict[str, Any]:
    """A fallback's table."""
    return ModelChoice(provider=provider, model=model).model_dump()
