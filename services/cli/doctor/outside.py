"""Exchanges, clocks, providers of models, services: what was heard from them. Facts in, findings out: pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.cli.doctor.finding import Finding, Part, fail, ok, skipped, some, span, warn
from services.collector.clock import Offset
from services.decider.llm import Listing
from shared.settings import ExchangeSettings, ModelChoice, Settings

SLOW_MS = 1000
"""An answer that takes longer is said to be slow."""

# ---------------------------------------------------------------- exchanges


@dataclass(frozen=True, slots=True)
class Heard:
    """One attempt: how long it took, or what was wrong with it."""

    ms: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Venue:
    """What an exchange answered.

    Attributes:
        rest, socket: Its metadata, and the handshake of its WebSocket. `problem`: in words.
        limited: It told us to wait, or does not serve this place; in its words.
        unlisted: Configured symbols that it does not list, in words; halted: those that are not traded now.
        offset: Its clock minus ours.
    """

    name: str
    rest: Heard
    socket: Heard
    limited: str | None = None
    unlisted: tuple[str, ...] = ()
    halted: tuple[str, ...] = ()
    symbols: int = 0
    offset: Offset | None = None


def exchanges(venues: Sequence[Venue], settings: Mapping[str, ExchangeSettings]) -> list[Finding]:
    """All of them; none within reach is one finding."""
    problems = [venue.rest.problem for venue in venues]
    if len(venues) > 1 and all(problems) and all(venue.socket.problem for venue in venues):
        names = some([venue.name for venue in venues], 5)
        words = f"none can be reached ({names}), such as {venues[0].name}: {problems[0]}"
        fix = "see this machine's network, names (DNS), firewall and proxy; without them: --offline"
        return [fail(Part.EXCHANGES, "all", words, fix)]
    found = []
    for venue in venues:
        found += exchange(venue, settings[venue.name].rest_url, settings[venue.name].ws_url)
    return found


def exchange(venue: Venue, rest_url: str, ws_url: str) -> list[Finding]:
    """REST, WebSocket and symbols of one exchange."""
    name, setting, found = venue.name, f"exchanges.{venue.name}", []

    def reached(check: str, heard: Heard, url: str, option: str) -> None:
        if heard.problem is not None:
            fix = f"see network, firewall and proxy of this machine, or {setting}.{option} ({url})"
            found.append(fail(Part.EXCHANGES, f"{name} {check}", heard.problem, fix))
        elif heard.ms > SLOW_MS:
            words = f"answers, but only after {span(heard.ms / 1000)}: ticks from there come late"
            fix = f"see the way to {url}; run this collector nearer to the exchange"
            found.append(warn(Part.EXCHANGES, f"{name} {check}", words, fix))
        else:
            found.append(ok(Part.EXCHANGES, f"{name} {check}", f"answers in {heard.ms} ms"))

    if venue.limited is not None:
        fix = f"wait as it says and start fewer collectors from this address; or set {setting}.rest_url and ws_url"
        found.append(fail(Part.EXCHANGES, f"{name} REST", venue.limited, fix))
    else:
        reached("REST", venue.rest, rest_url, "rest_url")
    reached("WebSocket", venue.socket, ws_url, "ws_url")
    if venue.unlisted:
        fix = f"correct {setting}.symbols (arb instruments {name} --all shows what there is)"
        found.append(fail(Part.EXCHANGES, f"{name} symbols", "; ".join(venue.unlisted), fix))
    if venue.halted:
        fix = f"wait, or take them out of {setting}.symbols"
        found.append(warn(Part.EXCHANGES, f"{name} symbols", some(list(venue.halted)), fix))
    if not (venue.unlisted or venue.halted) and venue.rest.problem is None and venue.limited is None:
        found.append(ok(Part.EXCHANGES, f"{name} symbols", f"all {venue.symbols} listed and traded"))
    return found


# ---------------------------------------------------------------- clocks

OFF_S = 1.0
"""Gates compare times of several machines within two seconds (detector.max_skew_ms): half of that is too much."""

NEAR_S = 0.25


def clock(offsets: Mapping[str, Offset]) -> list[Finding]:
    """Our clock against those of the exchanges: if most agree, it is ours that is wrong."""
    if not offsets:
        return [skipped(Part.CLOCK, "this machine", "no exchange told its time")]
    found = []
    middle_ns = statistics.median(offset.offset_ns for offset in offsets.values())
    sure_ns = min(offset.error_ns for offset in offsets.values())
    off_s = max(0.0, abs(middle_ns) - sure_ns) / 1e9
    words = f"{abs(middle_ns) / 1e9:.2f} s {'behind' if middle_ns > 0 else 'ahead of'} {some(sorted(offsets), 5)}"
    words += f" (to {sure_ns / 1e6:.0f} ms)"
    fix = "let NTP set this machine's clock: timedatectl set-ntp true, then timedatectl timesync-status"
    if off_s > OFF_S:
        found.append(fail(Part.CLOCK, "this machine", words, fix))
    elif off_s > NEAR_S:
        found.append(warn(Part.CLOCK, "this machine", words, fix))
    else:
        found.append(ok(Part.CLOCK, "this machine", words))
    for name, offset in offsets.items():
        apart_s = (abs(offset.offset_ns - middle_ns) - offset.error_ns) / 1e9
        if len(offsets) > 2 and apart_s > OFF_S:
            words = f"its clock is {apart_s:.1f} s from the others'"
            fix = f"nothing to do here: times of {name} are for display only; see its status page"
            found.append(warn(Part.CLOCK, name, words, fix))
    return found


# ---------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class Provider:
    """What a provider that a role names was found to be.

    Attributes:
        roles: Of `roles.*`, fallbacks and candidates included.
        key_problem: Why its key cannot be used (never the key itself).
        listing: Answer to the question for its models, with the key; None: not asked.
        reached: Without a key: whether it answers at all.
    """

    name: str
    roles: tuple[str, ...]
    key: bool
    key_problem: str | None = None
    listing: Listing | None = None
    reached: Heard | None = None


def choices(settings: Settings) -> list[tuple[str, ModelChoice]]:
    """Every model that may be asked, with the place of its setting: "risk", "risk.fallback"."""
    return [
        (f"{role}{where}", chosen)
        for role, one in settings.roles.items()
        for where, chosen in one.choices()
        if not (where == ".candidate" and one.candidate is not None and one.candidate.stage == "off")
    ]


def provider(found: Provider, settings: Settings) -> list[Finding]:
    """Key, address and models of one provider."""
    configured, name = settings.providers[found.name], found.name
    source = configured.api_key_env if configured.api_key_file is None else str(configured.api_key_file)
    address = f"providers.{name}.base_url ({configured.base_url})"
    if found.key_problem is not None:
        return [fail(Part.MODELS, name, found.key_problem, f"put the whole key into {source}, without quotes")]
    if not found.key:
        words = f"no key: {some(list(found.roles))} abstain{'s' * (len(found.roles) == 1)}"
        fix = f"set {source}"
        if found.reached is not None and found.reached.problem is not None:
            words += f"; it {found.reached.problem}"
            fix += f"; see the network, and {address}"
        return [warn(Part.MODELS, name, words, fix)]
    if found.reached is not None and found.reached.problem is not None:
        return [fail(Part.MODELS, name, found.reached.problem, f"correct {address}")]
    if found.listing is None:
        return [skipped(Part.MODELS, name, "has a key of the right form; not asked")]
    match found.listing.outcome:
        case "auth":
            words = f"refused the key (HTTP {found.listing.http})"
            return [fail(Part.MODELS, name, words, f"make a new key at {name} and put it into {source}")]
        case "quota":
            words = f"has no money or quota left for this key (HTTP {found.listing.http})"
            return [fail(Part.MODELS, name, words, f"see the billing page of {name}")]
        case "rate_limited":
            words = f"limits this key now (HTTP {found.listing.http})"
            return [warn(Part.MODELS, name, words, f"wait, or lower providers.{name}.calls_per_s")]
        case "network":
            return [fail(Part.MODELS, name, "cannot be reached", f"see the network, and {address}")]
        case "late":
            return [fail(Part.MODELS, name, "does not answer in time", f"see the network, and {address}")]
        case "server":
            return [warn(Part.MODELS, name, f"is in trouble (HTTP {found.listing.http})", "see its status page")]
    names, result = found.listing.names, []
    for where, chosen in choices(settings):
        model = settings.models[chosen.model]
        if chosen.provider == name and names and (model.name or chosen.model) not in names:
            words = f"lists {len(names)} models, but no {model.name or chosen.model!r}"
            fix = f"correct roles.{where}.model, or models.{chosen.model!r}.name; an alias need not be listed"
            result.append(warn(Part.MODELS, name, words, fix))
    if not result:
        listed = f"lists {len(names)} models" if names else f"answers (HTTP {found.listing.http})"
        result.append(ok(Part.MODELS, name, f"takes the key, {listed}, for {some(list(found.roles))}"))
    return result


def panel(providers: Sequence[Provider], settings: Settings) -> list[Finding]:
    """Whether anything can be executed at all."""
    with_key = {one.name for one in providers if one.key and one.key_problem is None}
    if not with_key:
        names = some([settings.providers[one.name].api_key_env for one in providers])
        return [warn(Part.MODELS, "panel", "no provider has a key: decisions rest on rules only", f"set {names}")]
    risk = settings.roles.get("risk")
    if risk is not None and not any(chosen.provider in with_key for _, chosen in risk.choices()):
        source = settings.providers[risk.provider].api_key_env
        words = "without the risk role nothing is executed"
        return [warn(Part.MODELS, "panel", words, f"set {source}, or give roles.risk another provider")]
    return []


# ---------------------------------------------------------------- services


@dataclass(frozen=True, slots=True)
class Service:
    """What a service said of itself. `problem`: no answer, or not one of ours; `failed`: checks that are not well."""

    url: str
    name: str = ""
    ready: bool = False
    problem: str | None = None
    failed: tuple[str, ...] = field(default=())
    checks: int = 0


def service(found: Service) -> Finding:
    """One service's own word."""
    if found.problem is not None:
        fix = "start it with ARB_METRICS_PORT set (9100 in containers), or correct --service"
        return fail(Part.SERVICES, found.url, found.problem, fix)
    if not found.ready:
        words = "is not ready: " + some(list(found.failed))
        return fail(Part.SERVICES, found.name, words, f"see its log, and {found.url}/readyz")
    return ok(Part.SERVICES, found.name, f"ready, {found.checks} checks ({found.url})")
