"""The providers' clients: made once, kept warm, and tried at the start. A thin shell around `llm`.

Which model may be asked when is not decided here: that is `guards`.
"""

import asyncio
import datetime
import difflib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import orjson

from services.decider import llm
from services.decider.llm import CallResult, Listing
from shared import secrets
from shared.errors import SettingsError
from shared.settings import ModelChoice, ModelSettings, RoleSettings, Settings

Reserve = Callable[[str, ModelSettings, str], bool]
"""`reserve(provider, model, text)`: whether a call with this prompt is paid for."""

TRIAL_S = 5.0
"""How long the list of models, the trial of a role and a ping may take, each."""
SOON_DAYS = 30
MOST_WORDS = 160
MOST_COMPARED = 500
"""Names that are searched for close ones: it takes a millisecond for ten of them if they are long."""

TRIAL = {
    "route": "direct",
    "orders": 2,
    "base": "BTC",
    "net_bps": 6.5,
    "naive_bps": 27.0,
    "notional_usd": 1000.0,
    "profit_usd": 0.65,
    "open_ms": 300,
    "seen_ms": 20,
}
"""A question of the usual form, as short as one can be; the answer to it is not used."""


class Models:
    """The clients of the providers that have a key and that any role names (itself, its fallback, its candidate).

    Args:
        environ: Where the keys are, for providers without a secret file.
        clock: Seconds, never backwards.

    Raises:
        SettingsError: a key cannot be read or is none of its provider's, or a `base_url` is no URL.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._clients: dict[str, llm.Client] = {}
        self._asked_s: dict[str, float] = {}
        self._refused: set[tuple[str, str]] = set()
        for name in dict.fromkeys(choice.provider for _, choice in _choices(settings)):
            provider = settings.providers[name]
            try:
                key = provider.api_key(environ)
            except SettingsError as error:
                raise SettingsError(f"providers.{name}: {error}") from None
            if key is None:
                continue
            secrets.register(key)
            try:
                self._clients[name] = llm.make_client(provider.base_url, key)
            except Exception as error:  # of the client's own classes, which are known behind `llm` only
                words = f"{type(error).__name__} for {provider.base_url!r}"
                raise SettingsError(f"providers.{name}.base_url: no client could be made: {words}") from None
            self._asked_s[name] = self._clock()

    def any(self) -> bool:
        """Whether any role can be asked at all."""
        return bool(self._clients)

    def has(self, provider: str) -> bool:
        """Whether the provider has a key and a role that names it."""
        return provider in self._clients

    def missing(self) -> list[str]:
        """The variables that would give a key to what the roles name and cannot be asked, each once."""
        without = (choice.provider for _, choice in _choices(self._settings) if choice.provider not in self._clients)
        return list(dict.fromkeys(self._settings.providers[name].api_key_env for name in without))

    async def ask(self, choice: ModelChoice, system: str, user: str) -> CallResult:
        """One question to one model; cancelled from outside when its time is over.

        After a 400 on the model's `request`, its `request_if_refused` (if it has one) is sent from then on, to this
        model at this provider. The refused call itself stays a "bad_request".

        Raises:
            CancelledError: nothing else. A provider without a client is "skipped:disabled".
        """
        client, model = self._clients.get(choice.provider), self._settings.models[choice.model]
        if client is None:
            return CallResult("skipped:disabled")
        place = (choice.provider, choice.model)
        other = model.request_if_refused
        request = other if other is not None and place in self._refused else model.request
        self._asked_s[choice.provider] = self._clock()
        result = await llm.ask(client, model.name or choice.model, model, request, system, user)
        if result.http == 400 and other is not None:
            self._refused.add(place)
        return result

    # ------------------------------------------------ the start

    async def warm(self, system_of: Mapping[str, str], reserve: Reserve) -> list[str]:
        """Connect, and see whether what the settings say is true; takes ten seconds at most.

        Lists every provider's models, then (with `decider.probe`) asks each role's model one small question.

        Args:
            system_of: The static prompt of each role.
            reserve: Asked before each call, which is paid: False, and it is not made.

        Returns:
            One line for each problem, with the setting to look at. Never raises but for a cancellation.
        """
        providers = list(self._clients)
        listings = dict(zip(providers, await asyncio.gather(*map(self._list, providers)), strict=True))
        usable = {name: listing for name, listing in listings.items() if listing.outcome != "network"}
        probe = self._settings.decider.probe
        roles: dict[str, RoleSettings] = {
            role: chosen for role, chosen in self._settings.roles.items() if probe and chosen.provider in usable
        }
        found = await asyncio.gather(
            *(self._trial(role, chosen, system_of.get(role), reserve) for role, chosen in roles.items())
        )
        tried = dict(zip(roles, found, strict=True))
        # One that answers need not list its models, or let this key see the list.
        answers = {roles[role].provider for role, line in tried.items() if line is None}
        silent = [name for name in providers if name not in answers]
        problems = [line for name in silent if (line := self._unreachable(name, listings[name])) is not None]
        for where, choice in _choices(self._settings):
            if where in tried and tried[where] is None:
                continue  # it answered, whatever the list says: some providers list no aliases
            if choice.provider in usable:
                problems += self._unlisted(where, choice, usable[choice.provider])
            problems += [line] if (line := tried.get(where)) else []
        return list(dict.fromkeys(problems))

    async def _list(self, provider: str) -> Listing:
        client = self._clients.get(provider)
        if client is None:  # closed while the others were asked
            return Listing("network")
        self._asked_s[provider] = self._clock()
        try:
            async with asyncio.timeout(TRIAL_S):
                return await llm.list_models(client)
        except TimeoutError:
            return Listing("late")

    def _unreachable(self, provider: str, listing: Listing) -> str | None:
        """What the list of models says of the provider itself; that there is none is no problem."""
        configured = self._settings.providers[provider]
        match listing.outcome:
            case "auth":
                return self._key_refused(provider, listing.http)
            case "network":
                return f"{provider} cannot be reached: see providers.{provider}.base_url ({configured.base_url})"
            case "late":
                return f"{provider} did not list its models within {TRIAL_S:g} s: see providers.{provider}.base_url"
        return None

    def _key_refused(self, provider: str, http: int | None) -> str:
        configured = self._settings.providers[provider]
        source = configured.api_key_env if configured.api_key_file is None else f"the file {configured.api_key_file}"
        return f"{provider} refused the key in {source} (HTTP {http}): is it the right one, and still valid?"

    def _unlisted(self, where: str, choice: ModelChoice, listing: Listing) -> list[str]:
        names, wanted = listing.names, self._settings.models[choice.model].name or choice.model
        if not names or wanted in names:
            return []
        close = difflib.get_close_matches(wanted, sorted(names)[:MOST_COMPARED], n=3, cutoff=0.5)
        closest = f"; close to it: {_printable(', '.join(close))}" if close else ""
        return [f"roles.{where}.model: {choice.provider} lists {len(names)} models, but no {wanted!r}{closest}"]

    async def _trial(self, role: str, chosen: RoleSettings, system: str | None, reserve: Reserve) -> str | None:
        """One line about what is wrong with the model of a role, None if it answers."""
        if system is None:
            return f"roles.{role}: not tried, it has no prompt"
        user = orjson.dumps({"role": role, **TRIAL}).decode()
        model = self._settings.models[chosen.model]
        try:
            async with asyncio.timeout(TRIAL_S):
                for _ in range(2):  # a second time where the first one taught us the other request
                    if not reserve(chosen.provider, model, system + user):
                        return f"roles.{role}: {chosen.model} was not tried, the budget has no room (decider.max_*_usd)"
                    learnt = (chosen.provider, chosen.model) in self._refused
                    result = await self.ask(chosen, system, user)
                    if learnt or (chosen.provider, chosen.model) not in self._refused:
                        break
        except TimeoutError:
            return (
                f"roles.{role}: {chosen.model} at {chosen.provider} did not answer within {TRIAL_S:g} s: a panel lasts "
                f"{self._settings.decider.panel_deadline_ms} ms (decider.panel_deadline_ms)"
            )
        except Exception as error:  # `reserve` is the caller's: whatever it does, the start goes on
            return f"roles.{role}: not tried ({type(error).__name__})"
        return self._about(role, chosen, result)

    def _about(self, role: str, chosen: ModelChoice, result: CallResult) -> str | None:
        model, provider = self._settings.models[chosen.model], chosen.provider
        this = f"roles.{role}: {chosen.model} at {provider}"
        match result.outcome:
            case "ok" | "unsure":
                return None
            case "slow":
                return (
                    f"{this} took {result.latency_ms} ms, and counts as slow from {model.slow_ms} ms on: see "
                    f"models.{chosen.model}.slow_ms and decider.panel_deadline_ms"
                )
            case "auth":
                return self._key_refused(provider, result.http)
            case "quota":
                return f"{provider} has no money or quota left for this key (HTTP {result.http}): see its billing page"
            case "rate_limited":
                return f"{this} is rate limited (HTTP 429): see providers.{provider}.calls_per_s and its own limits"
            case "bad_request" if result.http == 404:
                return f"{this} is not there (HTTP 404{_said(result)}): see its name and providers.{provider}.base_url"
            case "bad_request":
                return (
                    f"{this} refused the request (HTTP {result.http}{_said(result)}): see request, token_param and "
                    f"structured in models.{chosen.model}"
                )
            case "refusal" | "content_filter":
                return f"{this} refused to answer ({result.outcome}): see roles.{role}.prompt and model"
            case "invalid":
                return (
                    f"{this} did not answer with the fields asked for: see structured ({model.structured}), max_out "
                    f"and request (is thinking off?) in models.{chosen.model}"
                )
            case "server":
                return f"{this} failed (HTTP {result.http}): it is asked again when it is needed"
        return f"{this} cannot be reached ({result.outcome}): see providers.{provider}.base_url"

    # ------------------------------------------------ while it runs

    async def keep_warm(self) -> None:
        """Ping each provider that has not been asked for `decider.ping_s`; runs until it is cancelled.

        What a ping says is ignored: whether a model may be asked is judged by its calls.
        """
        every_s = self._settings.decider.ping_s
        while self._clients:
            now_s = self._clock()
            due = [name for name, asked_s in self._asked_s.items() if now_s - asked_s >= every_s]
            if due:
                await asyncio.gather(*map(self._ping, due))
            else:
                await asyncio.sleep(max(0.001, min(self._asked_s.values()) + every_s - now_s))

    async def _ping(self, provider: str) -> None:
        client = self._clients.get(provider)
        if client is None:  # closed meanwhile
            return
        self._asked_s[provider] = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(TRIAL_S):
                await llm.ping(client)

    async def close(self) -> None:
        """Close all connections; nothing can be asked after it."""
        clients = list(self._clients.values())
        self._clients.clear()
        for client in clients:
            with suppress(Exception):  # a connection that does not close well is closed all the same
                await client.close()


def check_dates(settings: Settings, today: datetime.date) -> list[str]:
    """One line for each model that its provider switches off within 30 days.

    Raises:
        SettingsError: a role's model (or its fallback, or its candidate) is past its last day.
    """
    soon, over = [], []
    for where, choice in _choices(settings):
        last = settings.models[choice.model].shutdown_date
        if last is None:
            continue
        days = (last - today).days
        see = f"choose another one for roles.{where}.model"
        if days < 0:
            over.append(f"roles.{where}: the last day of {choice.model} was {last}; {see}")
        elif days <= SOON_DAYS:
            soon.append(f"roles.{where}: {choice.model} ends on {last}, in {days} days (models.{choice.model}); {see}")
    if over:
        raise SettingsError("; ".join(over))
    return soon


def _choices(settings: Settings) -> list[tuple[str, ModelChoice]]:
    """Every model that may be asked, with the place of its setting: "risk", "risk.fallback", "risk.candidate"."""
    return [
        (f"{role}{where}", choice)
        for role, chosen in settings.roles.items()
        for where, choice in chosen.choices()
        if choice is not chosen.candidate or chosen.candidate.stage != "off"
    ]


def _said(result: CallResult) -> str:
    """The provider's own words about a request that it refused, if it has any: they name the field."""
    try:
        body = orjson.loads(result.raw or "")
    except orjson.JSONDecodeError:
        return ""
    inner = body[0] if isinstance(body, list) and body else body
    error = inner.get("error") if isinstance(inner, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f", {_printable(message)!r}" if isinstance(message, str) and message else ""


def _printable(text: str) -> str:
    """Fit for a line of a log: a provider's words could move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)[:MOST_WORDS]
