"""The shell: asks Kafka, exchanges, providers, services and this machine side by side, each within its time."""

import asyncio
import base64
import contextlib
import datetime
import os
import re
import resource
import secrets as randomness
import shutil
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from services.cli.decisions.show import clean
from services.cli.doctor import here, kafka, outside
from services.cli.doctor.finding import Finding, Part, Result, fail, ok, skipped
from services.cli.doctor.outside import Heard, Provider, Service, Venue
from services.collector import instruments
from services.collector.allowance import Allowance
from services.collector.clock import ClockOffset, offset
from services.collector.exchanges import exchange_named
from services.collector.exchanges.base import parse_answer, parse_listing
from services.collector.instruments import Catalog
from services.collector.rest import Rest
from services.decider import llm
from services.decider.budget import Budget
from services.decider.state import State, state_file
from services.detector.quiet import PLAIN
from shared import cluster, process, secrets, topics
from shared import kafka as client
from shared.cluster import Look, NoAnswer
from shared.errors import (
    ArbiterError,
    BrokerUnavailable,
    FeedError,
    RateLimited,
    SettingsError,
    SubscriptionRefused,
    UnknownSymbol,
)
from shared.messages import BookTick, HealthTick, read_tick
from shared.settings import ExchangeSettings, Settings, cache_dir

CONTACT_SHARE = 0.5
"""Of the whole time, for the first answer of a broker: the rest of Kafka's checks wait for it."""

TCP_S = 2.0

DOUBTFUL_S = 1.0
"""For Kafka's client where no connection could be made: what it says counts, but it would try again and again."""

TICKS_BACK_S = 2.5
"""A live book changes, or is proven every second: its state stands in the last so many seconds of ticks."""

REBALANCE_S = 3.0
"""A rebalance is over by then, unless a member hangs."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look at, beside `services`. `offline`: neither exchanges nor providers. `least_free`: bytes of disk."""

    parts: Collection[Part] = tuple(Part)
    offline: bool = False
    timeout_s: float = 10.0
    services: Sequence[str] = ()
    least_free: int = here.LEAST_FREE


async def examine(
    settings: Settings,
    asked: Asked,
    environ: Mapping[str, str] = os.environ,
    say: Callable[[Sequence[str]], None] = lambda _: None,
) -> list[Finding]:
    """All findings, in the order of `Part`; takes `asked.timeout_s` at most.

    Args:
        say: Told what is still waited for, each time that it changes.
    """
    today = datetime.datetime.now(datetime.UTC).date()
    wanted = set(asked.parts)
    found: list[Finding] = []
    jobs: dict[str, tuple[Part, Awaitable[list[Finding]]]] = {}
    deadline = time.monotonic() + asked.timeout_s
    if Part.SETTINGS in wanted:
        jobs["settings"] = (Part.SETTINGS, process.in_thread(here.dates, settings, today))
    if wanted & {Part.KAFKA, Part.TOPICS, Part.GROUPS, Part.TICKS}:
        jobs["Kafka"] = (Part.KAFKA, _kafka(settings, wanted, deadline))
    if wanted & {Part.EXCHANGES, Part.CLOCK}:
        if asked.offline:
            found += [skipped(p, "all", "not asked (--offline)") for p in (Part.EXCHANGES, Part.CLOCK) if p in wanted]
        else:
            jobs["exchanges"] = (Part.EXCHANGES, _exchanges(settings, wanted, deadline))
    if Part.MODELS in wanted:
        jobs["dates of models"] = (Part.MODELS, process.in_thread(here.models, settings, today))
        jobs["models"] = (Part.MODELS, _models(settings, environ, deadline, offline=asked.offline))
    if Part.BUDGET in wanted:
        jobs["budget"] = (Part.BUDGET, process.in_thread(_budget, settings, environ))
    if Part.MACHINE in wanted:
        jobs["machine"] = (Part.MACHINE, process.in_thread(_machine, settings, environ, asked.least_free))
    if asked.services:
        wanted.add(Part.SERVICES)
        jobs["services"] = (Part.SERVICES, _services(asked.services, deadline))
    tasks = {asyncio.ensure_future(job): (name, part) for name, (part, job) in jobs.items()}
    running = set(tasks)
    while running:
        say([tasks[task][0] for task in tasks if task in running])
        left_s = deadline + 0.2 - time.monotonic()  # each job ends by itself in time, and says what was missing
        done, running = await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
    for task, (name, part) in tasks.items():
        if task in running:
            task.cancel()
            found.append(fail(part, "time", f"{name}: not done within {asked.timeout_s:g} s", "a larger --timeout"))
        else:
            error = task.exception()
            found += task.result() if error is None else [_broken(part, name, error)]
    await asyncio.gather(*running, return_exceptions=True)
    order = list(Part)
    # The reason why the others are skipped is told even where only they were asked for.
    told = [one for one in found if one.part in wanted or (one.part == Part.KAFKA and one.result == Result.FAIL)]
    return sorted((_redacted(one) for one in told), key=lambda one: order.index(one.part))


def _redacted(finding: Finding) -> Finding:
    words, fix = secrets.redact(finding.words), secrets.redact(finding.fix)
    return finding._replace(words=_printable(words), fix=_printable(fix))


def _printable(text: str) -> str:
    """On one line, fit for a terminal, and without the number of an error that its words say, too."""
    return clean(re.sub(r"\[Errno -?\d+\] ", "", text).replace("\n", " "))


def _broken(part: Part, name: str, error: BaseException) -> Finding:
    """For what was not foreseen: the other findings stay."""
    words = f"{name} could not be looked at: {type(error).__name__}: {error}"
    fix = "correct what that names; if it names nothing of yours, it is a fault of `arb doctor`: report this line"
    return fail(part, "unforeseen", words, fix)


def _left(deadline: float, least: float = 0.2) -> float:
    return max(least, deadline - time.monotonic())


# ---------------------------------------------------------------- Kafka


async def _kafka(settings: Settings, wanted: Collection[Part], deadline: float) -> list[Finding]:
    servers = settings.kafka.servers
    wait_s = min(TCP_S, _left(deadline) / 4)
    # Only explains: whether a broker answers is for Kafka's client to say.
    listeners = await asyncio.gather(*(_listener(address.strip(), wait_s) for address in servers.split(",")))
    try:
        protocol = str(settings.kafka.client_options().get("security.protocol", "plaintext"))
        contact_s = _left(deadline) * CONTACT_SHARE
        if all(one.problem is not None for one in listeners):
            contact_s = min(DOUBTFUL_S, contact_s)
        look = await process.in_thread(cluster.look, settings.kafka, contact_s)
    except NoAnswer as error:
        if "SSL" not in protocol.upper():
            listeners = await asyncio.gather(*(_with_tls(one, wait_s) for one in listeners))
        found = [kafka.no_contact(servers, protocol, error.said, listeners)]
    except SettingsError as error:  # its words begin with the section
        section = "kafka.option_files" if str(error).startswith("kafka.option_files") else "kafka.options"
        found = [fail(Part.KAFKA, "options", str(error), f"correct [{section}]")]
    else:
        parts = {
            Part.KAFKA: _brokers,
            Part.TOPICS: _topics,
            Part.GROUPS: _groups,
            Part.TICKS: _ticks,
        }
        chosen = [(part, look_at) for part, look_at in parts.items() if part in wanted]
        answers = await asyncio.gather(
            *(look_at(settings, look, deadline) for _, look_at in chosen), return_exceptions=True
        )
        found = []
        for (part, _), answer in zip(chosen, answers, strict=True):
            if isinstance(answer, list):
                found += answer
            elif isinstance(answer, ArbiterError):
                found.append(fail(part, "answer", str(answer), "see the brokers' logs, and our rights (ACLs) there"))
            else:
                found.append(_broken(part, part.value, answer))
        return found
    return found + [
        skipped(part, "all", "no Kafka") for part in (Part.TOPICS, Part.GROUPS, Part.TICKS) if part in wanted
    ]


async def _listener(address: str, wait_s: float, tls: ssl.SSLContext | None = None) -> kafka.Listener:
    """Whether anything listens there."""
    place = kafka.host_and_port(address)
    problem = "is not of the form NAME:PORT" if place is None else await _unreachable(place, wait_s, tls)
    return kafka.Listener(address, problem)


async def _with_tls(listener: kafka.Listener, wait_s: float) -> kafka.Listener:
    """Whether it wants TLS."""
    if listener.problem is not None:
        return listener
    any_certificate = ssl.create_default_context()
    any_certificate.check_hostname, any_certificate.verify_mode = False, ssl.CERT_NONE
    encrypted = await _listener(listener.address, wait_s, any_certificate)
    return kafka.Listener(listener.address, None, encrypted.problem is None)


async def _unreachable(place: tuple[str, int], wait_s: float, tls: ssl.SSLContext | None = None) -> str | None:
    """Why no connection could be made; None if one could."""
    host, port = place
    try:
        async with asyncio.timeout(wait_s):
            _, writer = await asyncio.open_connection(host, port, ssl=tls)
    except TimeoutError:
        return f"no connection within {wait_s:.1f} s"
    except OSError as error:
        if "getaddrinfo" in str(error) or "ame or service" in str(error) or "resolution" in str(error):
            return f"no such name: {host}"
        return "nothing listens there (connection refused)" if error.errno == 111 else (error.strerror or str(error))
    writer.close()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(wait_s):
            await writer.wait_closed()
    return None


async def _brokers(settings: Settings, look: Look, deadline: float) -> list[Finding]:
    asked = {kafka.host_and_port(address.strip()) for address in settings.kafka.servers.split(",")}
    places = sorted(set(look.brokers.values()) - asked)
    wait_s = min(TCP_S, _left(deadline) / 2)
    problems = await asyncio.gather(*(_unreachable(place, wait_s) for place in places))
    unreachable = {f"{host}:{port}": why for (host, port), why in zip(places, problems, strict=True) if why is not None}
    found = kafka.contact(look, settings.kafka.servers, unreachable)
    try:
        configured = await process.in_thread(
            cluster.broker_settings, settings.kafka, min(look.brokers), min(5.0, _left(deadline))
        )
    except BrokerUnavailable as error:  # most clusters of others let only admins ask
        return [*found, skipped(Part.KAFKA, "broker settings", str(error))]
    return found + kafka.brokers(configured, settings)


async def _topics(settings: Settings, look: Look, deadline: float) -> list[Finding]:
    differences = await process.in_thread(
        cluster.check_topics, settings.kafka, topics.TOPICS, min(5.0, _left(deadline))
    )
    return kafka.table(differences) + kafka.copies(look)


async def _groups(settings: Settings, look: Look, deadline: float) -> list[Finding]:
    reads = {"detector": topics.tick_topics(), "decider": [topics.OPPORTUNITIES]}
    partitions = {"detector": topics.TICK_PARTITIONS, "decider": topics.EVENT_PARTITIONS}

    async def one(name: str) -> list[Finding]:
        found = await process.in_thread(cluster.group, settings.kafka, name, min(5.0, _left(deadline)))
        if found.members and found.state not in ("stable", "unknown") and _left(deadline) > REBALANCE_S + 1:
            await asyncio.sleep(REBALANCE_S)
            found = await process.in_thread(cluster.group, settings.kafka, name, min(5.0, _left(deadline)))
        return kafka.group(found, reads[name], partitions[name], settings.kafka.group_protocol)

    detector, decider = await asyncio.gather(one("detector"), one("decider"))
    return detector + decider


async def _ticks(settings: Settings, look: Look, deadline: float) -> list[Finding]:
    counts: dict[str, int] = {}
    for partition in look.partitions:
        counts[partition.topic] = counts.get(partition.topic, 0) + 1
    enabled = settings.enabled_exchanges()
    names = [topics.ticks(name) for name in enabled]
    asked = {name: counts[name] for name in (*names, topics.FX_RATES) if name in counts}
    now_ms = int(time.time() * 1000)
    told = await process.in_thread(cluster.newest_ms, settings.kafka, asked, min(5.0, _left(deadline)))
    answered_ms = int(time.time() * 1000)  # what came while we asked is not of the future
    newest = {
        topic: now_ms if at_ms is not None and now_ms < at_ms <= answered_ms else at_ms for topic, at_ms in told.items()
    }
    found = kafka.ticks(newest, now_ms, list(enabled))
    fresh = [
        name
        for name in enabled
        if (at_ms := newest.get(topics.ticks(name))) is not None and now_ms - at_ms <= kafka.STALE_S * 1000
    ]
    if fresh:
        states = await process.in_thread(_states, settings, [topics.ticks(name) for name in fresh], now_ms, deadline)
        found += kafka.books(states, {name: _watched(enabled[name]) for name in fresh})
    return found


def _watched(exchange: ExchangeSettings) -> list[str]:
    """Symbols with a book on the tick topic: rates go to fx-rates."""
    from shared.symbols import is_rate

    return [symbol for symbol in exchange.symbols if not is_rate(symbol)]


def _states(settings: Settings, names: Sequence[str], now_ms: int, deadline: float) -> dict[str, dict[str, str]]:
    """The last state of each book since some seconds before `now_ms`."""
    config = client.reader(settings.kafka, "doctor")
    wanted = client.spans(config, names, now_ms - int(TICKS_BACK_S * 1000), patience_s=_left(deadline))
    last: dict[tuple[str, str], tuple[int, str]] = {}
    for record in client.read_spans(config, wanted, _left(deadline)):
        if time.monotonic() > deadline:
            break
        if record is None:
            continue
        with contextlib.suppress(ArbiterError, ValueError):
            tick = read_tick(record.value)
            if isinstance(tick, BookTick | HealthTick):
                key = (tick.exchange, tick.symbol)
                state = tick.state if isinstance(tick, HealthTick) else "live"  # only live books are published
                last[key] = max(last.get(key, (0, "")), (tick.sequence, state))
    found: dict[str, dict[str, str]] = {}
    for (exchange, symbol), (_, state) in last.items():
        found.setdefault(exchange, {})[symbol] = str(state)
    return found


# ---------------------------------------------------------------- exchanges


async def _exchanges(settings: Settings, wanted: Collection[Part], deadline: float) -> list[Finding]:
    enabled = settings.enabled_exchanges()
    wait_s = max(0.5, _left(deadline) * 0.8)
    async with httpx2.AsyncClient(timeout=wait_s) as http:
        venues = await asyncio.gather(*(_venue(name, one, http, wait_s) for name, one in enabled.items()))
    found = []
    if Part.EXCHANGES in wanted:
        found += outside.exchanges(venues, enabled)
    if Part.CLOCK in wanted:
        found += outside.clock({venue.name: venue.offset for venue in venues if venue.offset is not None})
    return found


async def _venue(name: str, configured: ExchangeSettings, http: httpx2.AsyncClient, wait_s: float) -> Venue:
    protocol = exchange_named(name)
    rest = Rest(protocol, http, Allowance(protocol.limits.requests), time.time_ns, time.monotonic_ns, asyncio.sleep)
    socket = asyncio.ensure_future(
        _handshake(protocol.url(configured.ws_url, [protocol.native(s) for s in configured.symbols]), http, wait_s)
    )
    found: dict[str, Any] = {"symbols": len(configured.symbols)}
    began = time.monotonic()
    try:
        async with asyncio.timeout(wait_s):
            known = ClockOffset()
            for _ in range(2):  # the first one also makes the connection, and says little of the clock
                began = time.monotonic()
                answer = await rest.get(protocol.time_url(configured.rest_url))
                found["rest"] = Heard(_ms(began))
                with contextlib.suppress(FeedError):
                    server_ns, coarse_ns = parse_answer(protocol, protocol.parse_time, answer.body)
                    known.add(offset(answer.sent_ns, server_ns, answer.received_ns, coarse_ns))
            found["offset"] = known.best()
            answer = await rest.get(protocol.instruments_url(configured.rest_url), protocol.instruments_cost)
            listing = tuple(parse_listing(protocol, answer.body))
        catalog = Catalog(protocol.name, configured.rest_url, answer.received_ns, listing)
        unlisted, halted = [], []
        for symbol in configured.symbols:
            try:
                halted += [f"{symbol} {why}" for why in instruments.resolve(catalog, [symbol], name).halted.values()]
            except UnknownSymbol as error:
                unlisted.append(str(error).partition(";")[0])
            except SettingsError as error:
                unlisted.append(str(error))
        found |= {"unlisted": tuple(unlisted), "halted": tuple(halted)}
    except TimeoutError:
        found["rest"] = Heard(_ms(began), f"no answer within {wait_s:.1f} s")
    except (RateLimited, SubscriptionRefused) as error:
        found |= {"rest": Heard(_ms(began)), "limited": str(error)}
    except FeedError as error:
        found["rest"] = Heard(_ms(began), str(error).removeprefix(f"{name}: "))
    except httpx2.InvalidURL as error:
        found["rest"] = Heard(_ms(began), f"is no address: {error}")
    return Venue(name, socket=await socket, **found)


async def _handshake(url: str, http: httpx2.AsyncClient, wait_s: float) -> Heard:
    """The opening of a WebSocket (RFC 6455), closed at once: nothing is subscribed."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(randomness.token_bytes(16)).decode(),
    }
    began = time.monotonic()
    try:
        async with asyncio.timeout(wait_s):
            async with http.stream("GET", url.replace("ws", "http", 1), headers=headers) as answer:
                if answer.status_code == 101:
                    return Heard(_ms(began))
                return Heard(_ms(began), f"refused the WebSocket (HTTP {answer.status_code})")
    except TimeoutError:
        return Heard(_ms(began), f"no WebSocket within {wait_s:.1f} s")
    except httpx2.HTTPError as error:
        return Heard(_ms(began), f"no WebSocket: {error or type(error).__name__}")
    except httpx2.InvalidURL as error:
        return Heard(_ms(began), f"no WebSocket: {error}")


def _ms(began: float) -> int:
    return int((time.monotonic() - began) * 1000)


# ---------------------------------------------------------------- models


async def _models(settings: Settings, environ: Mapping[str, str], deadline: float, *, offline: bool) -> list[Finding]:
    roles: dict[str, list[str]] = {}
    for where, chosen in outside.choices(settings):
        roles.setdefault(chosen.provider, []).append(where)
    wait_s = _left(deadline) * 0.8
    providers = await asyncio.gather(
        *(_provider(name, tuple(of), settings, environ, wait_s, offline) for name, of in roles.items())
    )
    found = [line for one in providers for line in outside.provider(one, settings)]
    return found + outside.panel(providers, settings)


async def _provider(
    name: str, roles: tuple[str, ...], settings: Settings, environ: Mapping[str, str], wait_s: float, offline: bool
) -> Provider:
    configured = settings.providers[name]
    try:
        key = configured.api_key(environ)
    except SettingsError as error:
        return Provider(name, roles, key=True, key_problem=str(error))
    if key is not None:
        secrets.register(key)
    if offline:
        return Provider(name, roles, key=key is not None)
    if key is None:
        return Provider(name, roles, key=False, reached=await _reach(configured.base_url, wait_s))
    try:
        models = llm.make_client(configured.base_url, key)
    except Exception as error:  # of the client's own classes, which are known behind `llm` only
        return Provider(name, roles, key=True, reached=Heard(0, f"cannot be asked ({type(error).__name__})"))
    try:
        async with asyncio.timeout(wait_s):
            listing = await llm.list_models(models)
    except TimeoutError:
        listing = llm.Listing("late")
    finally:
        await models.close()
    return Provider(name, roles, key=True, listing=listing)


async def _reach(url: str, wait_s: float) -> Heard:
    """Whether anything answers there: without a key it refuses, which is an answer."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(wait_s):
            async with httpx2.AsyncClient(timeout=wait_s, trust_env=False) as http:
                async with http.stream("GET", f"{url.rstrip('/')}/models"):
                    return Heard(_ms(began))
    except TimeoutError:
        return Heard(_ms(began), f"does not answer within {wait_s:.1f} s")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Heard(_ms(began), f"cannot be reached: {error or type(error).__name__}")


# ---------------------------------------------------------------- this machine


def _budget(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    switch = settings.decider.kill_switch
    try:
        on = switch is not None and switch.exists()
    except OSError:  # the decider counts what it cannot see as on
        on = True
    found = [here.kill_switch(None if switch is None else str(switch), on)]
    try:
        file = state_file(settings, environ)
    except SettingsError as error:
        return [*found, fail(Part.BUDGET, "state file", str(error), "set decider.state_file")]
    try:
        if not file.exists():
            return [*found, ok(Part.BUDGET, "state file", f"{file} does not exist yet: no decider has run with it")]
        with State(file, read_only=True) as state:
            spent = Budget(settings, state).spent(time.time_ns())
    except SettingsError as error:
        words = str(error).removeprefix("decider.state_file: ")
        fix = f"stop the deciders, mv {file} {file}.bad (what was spent today is then forgotten), start them again"
        if "damaged" not in words:
            fix = "let this user read and write it, or name another file in decider.state_file"
        return [*found, fail(Part.BUDGET, "state file", words, fix)]
    except OSError as error:
        fix = "let this user enter the folder, or name another file in decider.state_file"
        return [*found, fail(Part.BUDGET, "state file", f"{file}: {error.strerror}", fix)]
    return [*found, ok(Part.BUDGET, "state file", f"{file} is sound"), *here.budget(spent)]


def _machine(settings: Settings, environ: Mapping[str, str], least_free: int) -> list[Finding]:
    places = {"cache": cache_dir(environ)}
    with contextlib.suppress(SettingsError):  # told by the budget's checks
        places["state"] = state_file(settings, environ).absolute().parent
    found = []
    mounts = _mounts()
    for what, path in places.items():
        # `Path.exists` raises where we may not enter the folder above
        there = next(one for one in (path, *path.absolute().parents) if os.path.exists(one))
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK | os.X_OK)
        folder = here.Folder(what, str(path), free, _file_system(there.resolve(), mounts), writable)
        found += here.disk(folder, least_free)
    found += here.versions(tuple(sys.version_info[:3]), *cluster.client_versions())
    found.append(here.tick_path(PLAIN))
    found.append(here.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    return found


def _mounts() -> list[tuple[str, str]]:
    """Mount point and type; empty where the system does not tell so."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return []
    return [(fields[1].replace("\\040", " "), fields[2]) for line in lines if len(fields := line.split()) > 2]


def _file_system(path: Path, mounts: Sequence[tuple[str, str]]) -> str | None:
    """Type of what is mounted deepest above the path; of two at one place the later."""
    found = [(len(where), number, kind) for number, (where, kind) in enumerate(mounts) if path.is_relative_to(where)]
    return max(found)[2] if found else None


# ---------------------------------------------------------------- services


async def _services(urls: Sequence[str], deadline: float) -> list[Finding]:
    wait_s = _left(deadline) * 0.8
    async with httpx2.AsyncClient(timeout=wait_s, trust_env=False) as http:
        return [outside.service(one) for one in await asyncio.gather(*(_service(url, http, wait_s) for url in urls))]


async def _service(url: str, http: httpx2.AsyncClient, wait_s: float) -> Service:
    url = url.rstrip("/").removesuffix("/readyz")
    try:
        async with asyncio.timeout(wait_s):
            answer = await http.get(f"{url}/readyz")
    except TimeoutError:
        return Service(url, problem=f"no answer within {wait_s:.1f} s")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Service(url, problem=f"no answer: {error or type(error).__name__}")
    try:
        report = answer.json()
        failed = tuple(f"{one['check']}: {one['words']}" for one in report["checks"] if not one["ok"])
        return Service(
            url, f"{report['service']}", answer.status_code == 200, failed=failed, checks=len(report["checks"])
        )
    except (ValueError, KeyError, TypeError):
        return Service(url, problem=f"HTTP {answer.status_code}, but not as a service of ours answers")
