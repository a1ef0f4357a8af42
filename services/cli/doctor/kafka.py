"""Kafka: is it there, are topics, copies, groups and ticks as they must be. Facts in, findings out: pure."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.cli.doctor.finding import Finding, Part, fail, ok, skipped, some, span, warn
from shared import topics
from shared.cluster import Finding as Difference
from shared.cluster import Group, Look, Partition
from shared.kafka.refusals import WHERE
from shared.settings import Settings
from shared.topics import TOPICS

# ---------------------------------------------------------------- is it there

_ADDRESS = re.compile(r"(?:\w+://)?(\[[^]]+]|[^:/\s]+)(?::(\d{1,5}))?")
_PORT_OF_KAFKA = 9092


def host_and_port(address: str) -> tuple[str, int] | None:
    """An address as librdkafka takes it: `SSL://a:1`, `a`, `[::1]:9092`; None if it is none."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return None
    port = int(found[2] or _PORT_OF_KAFKA)
    return (found[1].strip("[]"), port) if 0 < port < 65536 else None


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that was tried without Kafka's client: `problem` None if it takes connections; whether by TLS."""

    address: str
    problem: str | None
    tls: bool = False


_PORT = "name Kafka's own port in kafka.servers or ARB_KAFKA_SERVERS (brokers in Docker have another one for the host)"
_PROTOCOL = '"security.protocol" in [kafka.options]'

# What librdkafka says of an attempt (a part of it), what that means, and the way out. The first that is found counts:
# what comes later in a handshake says more.
_SAID = (
    (
        "SASL authentication error",
        "the broker refused user or password",
        'see "sasl.username" and "sasl.password" in [kafka.options] or [kafka.option_files], and that the user exists',
    ),
    (
        "Authentication failed",
        "the broker refused user or password",
        'see "sasl.username" and "sasl.password" in [kafka.options] or [kafka.option_files], and that the user exists',
    ),
    (
        "current SASL state",
        "the listener wants no SASL, or another mechanism",
        f'see {_PROTOCOL} and "sasl.mechanism"; or name the listener that wants it in kafka.servers',
    ),
    (
        "mechanism handshake failed",
        "the listener wants another SASL mechanism",
        'see "sasl.mechanism" in [kafka.options]: such as SCRAM-SHA-512',
    ),
    (
        "hostname mismatch",
        "the broker's certificate is for another name",
        "name the broker in kafka.servers (and in its advertised.listeners) as its certificate does",
    ),
    (
        "address mismatch",
        "the broker's certificate is for another address",
        "name the broker in kafka.servers (and in its advertised.listeners) as its certificate does",
    ),
    (
        "certificate has expired",
        "the broker's certificate has expired",
        "renew the broker's certificate, and see this machine's clock",
    ),
    (
        "verify failed",
        "the broker's certificate is of an authority that is not known here",
        'set "ssl.ca.location" in [kafka.options] to the file with the certificate of that authority',
    ),
    (
        "certificate required",
        "the broker wants a certificate of ours",
        'set "ssl.certificate.location" and "ssl.key.location" in [kafka.options]',
    ),
    (
        "bad certificate",
        "the broker does not take our certificate",
        'see "ssl.certificate.location" and "ssl.key.location" in [kafka.options]',
    ),
    (
        "PLAINTEXT broker listener",
        "TLS was tried on a listener without it",
        f"set {_PROTOCOL} to PLAINTEXT or SASL_PLAINTEXT, or name the listener with TLS in kafka.servers",
    ),
    (
        "wrong version number",
        "TLS was tried on a listener without it",
        f"set {_PROTOCOL} to PLAINTEXT or SASL_PLAINTEXT, or name the listener with TLS in kafka.servers",
    ),
    ("response size 1213486160", "an HTTP server answers there, not Kafka", _PORT),  # the first four letters: HTTP
    ("response size", "what answers there does not speak Kafka's protocol", _PORT),
)

_START = f"start Kafka there, or name another with ARB_KAFKA_SERVERS ({WHERE})"


def no_contact(servers: str, protocol: str, said: Sequence[str], listeners: Sequence[Listener]) -> Finding:
    """Why no broker answered."""
    everything = " ".join(said)
    for part, words, fix in _SAID:
        if part.lower() in everything.lower():
            return fail(Part.KAFKA, "broker", f"{servers}: {words}", fix)
    speaking = [one for one in listeners if one.problem is None]
    if not speaking:
        problems = [f"{one.address}: {one.problem}" for one in listeners]
        named = any("name" in (one.problem or "") for one in listeners)
        fix = "correct the name in kafka.servers or ARB_KAFKA_SERVERS" if named else _START
        return fail(Part.KAFKA, "broker", some(problems) or f"{servers}: no answer", fix)
    address = speaking[0].address
    plain = "SSL" not in protocol.upper()
    if plain and any(one.tls for one in speaking):
        to = "SASL_SSL" if protocol.upper().startswith("SASL") else "SSL"
        return fail(
            Part.KAFKA,
            "broker",
            f"{address} wants TLS, and it was tried without",
            f'set {_PROTOCOL} to {to}, and "ssl.ca.location"',
        )
    return fail(
        Part.KAFKA,
        "broker",
        f"{address} takes connections, but does not answer as Kafka does",
        f"{_PORT}; if it is the right one, the broker hangs: see its log",
    )


def contact(look: Look, servers: str, unreachable: Mapping[str, str]) -> list[Finding]:
    """The brokers that there are, and those whose own address leads nowhere from here."""
    names = ", ".join(f"{host}:{port}" for host, port in look.brokers.values())
    count = len(look.brokers)
    found = [ok(Part.KAFKA, "broker", f"{count} broker{'s' if count > 1 else ''} ({names}) in {look.took_ms} ms")]
    for address, problem in unreachable.items():
        found.append(
            fail(
                Part.KAFKA,
                "advertised address",
                f"{servers} answers, but a broker calls itself {address}: {problem}",
                "set the broker's advertised.listeners to what this machine reaches, or name the listener for this "
                "network in kafka.servers",
            )
        )
    return found


SESSION_MS = 20_000
"""Sessions of the new protocol beyond this leave a killed detector's coins dark for too long."""


def brokers(configured: Mapping[str, str | None], settings: Settings) -> list[Finding]:
    """Settings of a broker that hurt later."""
    found = []
    if configured.get("auto.create.topics.enable") == "true":
        found.append(
            warn(
                Part.KAFKA,
                "auto creation",
                "brokers create topics that are only mistyped, with other partition counts",
                "set auto.create.topics.enable=false on every broker",
            )
        )
    else:
        found.append(ok(Part.KAFKA, "auto creation", "off"))
    if settings.kafka.group_protocol == "consumer":
        protocols = (configured.get("group.coordinator.rebalance.protocols") or "").split(",")
        session = int(configured.get("group.consumer.session.timeout.ms") or 0)
        if "consumer" not in protocols:
            found.append(
                fail(
                    Part.KAFKA,
                    "group protocol",
                    "the brokers do not know the new one (KIP-848)",
                    "set kafka.group_protocol to classic, or upgrade to Kafka 4",
                )
            )
        elif session > SESSION_MS:
            found.append(
                warn(
                    Part.KAFKA,
                    "group protocol",
                    f"a member that is killed is noticed after {span(session / 1000)}",
                    "set group.consumer.session.timeout.ms=10000 (and its minimum) on every broker",
                )
            )
        else:
            found.append(ok(Part.KAFKA, "group protocol", f"consumer (KIP-848), sessions of {span(session / 1000)}"))
    return found


# ---------------------------------------------------------------- topics and copies


def table(differences: Sequence[Difference]) -> list[Finding]:
    """The topics against the table in `shared/topics.py`."""
    found = []
    missing = [one.topic for one in differences if one.problem == "is missing"]
    if missing:
        found.append(fail(Part.TOPICS, "missing", f"{len(missing)} missing: {some(missing)}", "arb topics apply"))
    for one in differences:
        if one.problem == "is missing":
            continue
        check = "setting" if one.mendable else "partitions"
        words = f"{one.topic} {one.problem}"
        if one.mendable:
            found.append(fail(Part.TOPICS, check, words, "arb topics apply"))
            continue
        if one.topic.startswith("tick-data-"):
            words += ": detectors would see a coin on some exchanges only, and refuse to run"
        found.append(
            fail(
                Part.TOPICS,
                check,
                words,
                f"stop all services, delete it (kafka-topics.sh --delete --topic {one.topic}) and run arb topics apply",
            )
        )
    if not differences:
        found.append(ok(Part.TOPICS, "table", f"all {len(TOPICS)} as they must be, tick topics co-partitioned"))
    return found


OFFSETS = "__consumer_offsets"


def copies(look: Look) -> list[Finding]:
    """Leaders and copies of our topics and of the groups' offsets."""
    known = {topic.name: topic for topic in TOPICS}
    ours = [p for p in look.partitions if p.topic in known or p.topic == OFFSETS]
    if not ours:
        return [skipped(Part.TOPICS, "copies", "there is none of our topics")]
    count = len(look.brokers)
    away = sorted({broker for p in ours for broker in p.replicas} - set(look.brokers))
    back = f"start broker {', '.join(map(str, away))} again" if away else "see the brokers' logs"
    found = []
    if offline := [p for p in ours if p.leader < 0]:
        found.append(fail(Part.TOPICS, "leaders", f"{_places(offline)} have no leader: nothing goes in or out", back))
    refusing = [p for p in ours if p.leader >= 0 and len(p.in_sync) < _least(p)]
    if refusing:
        words = f"{_places(refusing)} have fewer copies in sync than min.insync.replicas: writes are refused"
        found.append(fail(Part.TOPICS, "copies", words, back))
    behind = [p for p in ours if p.leader >= 0 and len(p.in_sync) < len(p.replicas) and p not in refusing]
    if behind:
        found.append(warn(Part.TOPICS, "copies", f"{_places(behind)} are not on all their brokers", back))
    wanted = min(3, count)
    few = sorted({p.topic for p in ours if len(p.replicas) < wanted})
    if few:
        found.append(
            warn(
                Part.TOPICS,
                "replication",
                f"{some(few)}: fewer than {wanted} copies on {count} brokers",
                "kafka-reassign-partitions.sh adds copies; new topics get them by arb topics apply",
            )
        )
    if not found:
        words = f"{len(ours)} partitions, each with a leader and {wanted} copies in sync"
        if count == 1:
            words = f"{len(ours)} partitions, each with a leader; one broker, so there is no second copy"
        found.append(ok(Part.TOPICS, "copies", words))
    return found


def _least(partition: Partition) -> int:
    topic = next((t for t in TOPICS if t.name == partition.topic), None)
    return 1 if topic is None else int(topic.settings(len(partition.replicas))["min.insync.replicas"])


def _places(partitions: Sequence[Partition]) -> str:
    counts = Counter(p.topic for p in partitions)
    return f"{len(partitions)} partitions ({some([f'{name}: {count}' for name, count in counts.items()], 2)})"


# ---------------------------------------------------------------- consumer groups

LAG = {"detector": 20_000, "decider": 500}
"""Records behind, from which a group is said to be slow."""

_STARTED_BY = {"detector": "arb detect", "decider": "arb decide"}


def group(found: Group, read: Sequence[str], partitions: int, protocol: str) -> list[Finding]:
    """One of our consumer groups.

    Args:
        read: Topics of its subscription, each with `partitions` of them.
        protocol: `kafka.group_protocol`.
    """
    name, start = found.name, _STARTED_BY.get(found.name, "its service")
    if not found.members:
        words = "has no member: nothing reads " + ("the ticks" if name == "detector" else some(list(read)))
        return [fail(Part.GROUPS, name, words, f"start `{start}`; if it runs, its log says why it is not in")]
    people = f"{len(found.members)} member{'s' if len(found.members) > 1 else ''}"
    if found.state not in ("stable", "unknown"):
        return [
            fail(
                Part.GROUPS,
                name,
                f"{people}, but it has been {found.state.replace('_', ' ')} for seconds",
                "wait ten seconds (a killed member is noticed then); if it stays, restart the member that hangs "
                f"({some(sorted({one.client_id for one in found.members}))})",
            )
        ]
    result = []
    if found.assignor and found.assignor != "range":
        result.append(
            fail(
                Part.GROUPS,
                name,
                f"shares its partitions by {found.assignor!r}: a coin's exchanges come apart",
                '"partition.assignment.strategy" must not stand in [kafka.options]; restart every member',
            )
        )
    if found.protocol != protocol and found.protocol != "unknown":
        result.append(
            warn(
                Part.GROUPS,
                name,
                f"runs with the {found.protocol} protocol, the settings say {protocol}",
                "set kafka.group_protocol alike for all members, and restart them",
            )
        )
    apart = [
        one for one in found.members if len({frozenset(n for t, n in one.places if t == name) for name in read}) > 1
    ]
    if apart:
        result.append(
            fail(
                Part.GROUPS,
                name,
                f"{apart[0].client_id} has other partitions of one topic than of another: {_numbers(apart[0].places)}",
                "all tick topics need the same number of partitions (arb topics check), all members the same settings",
            )
        )
    wanted = {(topic, number) for topic in read for number in range(partitions)}
    held = {place for one in found.members for place in one.places}
    if unread := wanted - held:
        result.append(
            fail(
                Part.GROUPS,
                name,
                f"{len(unread)} of {len(wanted)} partitions are read by nobody",
                f"restart the members (`{start}`)",
            )
        )
    idle = sum(1 for one in found.members if not one.places)
    if idle:
        result.append(
            warn(
                Part.GROUPS,
                name,
                f"{idle} of {people} have nothing to read: there are {partitions} partitions",
                f"run at most {partitions} of `{start}`",
            )
        )
    lag = sum(found.lag.get(place, 0) for place in wanted)
    if lag > LAG.get(name, 1000):
        most = max(wanted, key=lambda place: found.lag.get(place, 0))
        result.append(
            warn(
                Part.GROUPS,
                name,
                f"{lag} records behind, most of them on {most[0]}/{most[1]}",
                f"run more of `{start}` (up to {partitions}), and see the CPU of those that there are",
            )
        )
    if not result:
        result.append(ok(Part.GROUPS, name, f"{people}, {found.assignor or 'range'}, {lag} records behind"))
    return result


def _numbers(places: frozenset[tuple[str, int]]) -> str:
    by_topic: dict[str, list[int]] = defaultdict(list)
    for topic, number in sorted(places):
        by_topic[topic].append(number)
    return some([f"{topic} {numbers}" for topic, numbers in by_topic.items()], 2)


# ---------------------------------------------------------------- ticks

STALE_S = 5.0
"""Each live book changes, or is proven every second: a tick topic that is silent for so long has no live book."""

AHEAD_S = 1.0


def ticks(newest_ms: Mapping[str, int | None], now_ms: int, exchanges: Sequence[str]) -> list[Finding]:
    """How old the newest record of each tick topic and of fx-rates is.

    Args:
        newest_ms: Of the topics that there are; None: it is empty.
        exchanges: Those that are enabled.
    """
    found = []
    names = {topics.ticks(name): name for name in exchanges} | {topics.FX_RATES: "fx-rates"}
    if all(topic in newest_ms and newest_ms[topic] is None for topic in names):
        words = f"there is none, of any of {len(exchanges)} exchanges"
        return [fail(Part.TICKS, "all", words, f"start `arb collect` for each of {some(list(exchanges), 5)}")]
    for topic, name in names.items():
        if topic not in newest_ms:
            found.append(fail(Part.TICKS, name, f"its topic is missing ({topic})", "arb topics apply"))
            continue
        start = f"arb collect {name}" if topic != topics.FX_RATES else "arb collect EXCHANGE"
        at_ms = newest_ms[topic]
        if at_ms is None:
            found.append(fail(Part.TICKS, name, "there is none", f"start `{start}`; its log says what keeps it"))
            continue
        age_s = (now_ms - at_ms) / 1000
        if age_s > STALE_S:
            words = f"the newest is {span(age_s)} old"
            found.append(fail(Part.TICKS, name, words, f"see the log of `{start}`, or start it"))
        elif age_s < -AHEAD_S:
            words = f"the newest is {span(-age_s)} in the future: the collector's clock and ours are apart"
            found.append(fail(Part.TICKS, name, words, "let NTP set the clocks of both machines (chronyc tracking)"))
        else:
            found.append(ok(Part.TICKS, name, f"the newest is {max(0.0, age_s):.1f} s old"))
    return found


STATE_HELP = {
    "syncing": "wait a moment; if it stays, see the collector's log",
    "stale": "the exchange is silent or the way to it is slow: see the collector's log and its lag",
    "gap": "updates were lost; the collector asks anew. If it comes again, see its CPU and network",
    "checksum": "the book did not verify; the collector asks anew. If it comes again: arb verify",
    "crossed": "the book did not verify; the collector asks anew",
    "disconnected": "see the collector's log, and `arb doctor --only exchanges`",
    "halted": "the exchange does not trade it now; take it out of exchanges.*.symbols if that lasts",
}


def books(states: Mapping[str, Mapping[str, str]], wanted: Mapping[str, Sequence[str]]) -> list[Finding]:
    """States of the books by exchange and symbol, as the last seconds of their ticks say.

    Args:
        wanted: Configured symbols of the exchanges whose ticks were read.
    """
    found = []
    for exchange, symbols in wanted.items():
        known = states.get(exchange, {})
        bad = {symbol: known.get(symbol, "unknown") for symbol in symbols if known.get(symbol) != "live"}
        if not bad:
            found.append(ok(Part.TICKS, f"{exchange} books", f"{len(symbols)} of {len(symbols)} live"))
            continue
        words = f"{len(symbols) - len(bad)} of {len(symbols)} live; " + some(
            [f"{s} {state}" for s, state in bad.items()]
        )
        worst = Counter(bad.values()).most_common(1)[0][0]
        fix = STATE_HELP.get(worst, "the collector has other symbols than these settings, or is not connected")
        found.append((warn if len(bad) < len(symbols) else fail)(Part.TICKS, f"{exchange} books", words, fix))
    return found
