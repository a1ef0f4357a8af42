"""Whether a model may be asked now, and what is learnt from how it answered. Pure: the clock is passed in.

Fed with the outcome codes of calls. A code that is not known counts as a failure: it is no answer.
"""

import math
from dataclasses import dataclass

from services.decider.breaker import Breaker, Result, State
from services.decider.bucket import Bucket, Steady
from shared.settings import ProviderSettings, Settings

RESULTS: dict[str, Result] = {
    "ok": Result.OK,
    "slow": Result.SLOW,
    "unsure": Result.OK,  # a valid answer, only not one to act on
    "late": Result.LATE,
    "server": Result.FAILED,
    "network": Result.FAILED,
    "invalid": Result.FAILED,
    "auth": Result.NEUTRAL,
    "quota": Result.NEUTRAL,
    "rate_limited": Result.NEUTRAL,
    "bad_request": Result.NEUTRAL,
    "saturated": Result.NEUTRAL,  # our own pool was empty
    "unneeded": Result.NEUTRAL,
    "refusal": Result.NEUTRAL,
    "content_filter": Result.NEUTRAL,
}
"""What each outcome says to the breaker. Keys, quotas, limits and requests have rules of their own, below."""

SUCCESSES = frozenset({"ok", "slow", "unsure"})
UNDERSTOOD = SUCCESSES | {"refusal", "content_filter", "invalid"}
"""The provider took the request as it stands: it was not a bad one. An error or a silence says nothing about that."""

UNASKED_WAIT_S = 1.0
UNASKED_WAIT_MAX_S = 60.0
"""Wait after the first "too many requests" that names none, and the longest that doubling comes to."""
ASKED_WAIT_MAX_S = 300.0
"""A provider that asks for a longer wait is asked again after this one."""


@dataclass(slots=True)
class _Provider:
    calls: Bucket
    tokens: Bucket
    key_refused: bool = False
    quota_until_s: float = -math.inf
    not_before_s: float = -math.inf
    limited: int = 0  # "too many requests" since the last success


@dataclass(slots=True)
class _Model:
    breaker: Breaker
    bad_requests: int = 0  # since the last request that was understood
    disabled: bool = False
    quota_until_s: float = -math.inf


class Guards:
    """Breakers, waits and buckets of all models. One per process: providers count what all roles ask together.

    A provider or model is made on first use, one that is not in the settings with the defaults of those that are.
    """

    def __init__(self, settings: Settings) -> None:
        self._guards = settings.guards
        self._configured = settings.providers
        # Calls are cut off at the panel's deadline; twice that leaves time for those that are made beside a panel.
        self._lost_after_s = max(settings.guards.window_s, 2 * settings.decider.panel_deadline_ms / 1000)
        self._providers: dict[str, _Provider] = {}
        self._models: dict[tuple[str, str], _Model] = {}
        self._clock = Steady()

    def refuses(self, provider: str, model: str, tokens: int, now_s: float) -> str | None:
        """Why the model may not be asked now, as an outcome code; None if it may.

        Then the call, its tokens and the trial of a half-open breaker are taken, and `report` must follow, even if
        the call is never made. If it is refused, nothing is taken.

        Args:
            tokens: Most that the call can use, in and out.
            now_s: Seconds, of any clock that is always the same.

        Returns:
            The first that holds of "skipped:disabled" (key refused, or the model's requests), "skipped:breaker" (or
            out of quota), "skipped:not_before" and "skipped:limiter" (or more tokens than the bucket ever holds).
        """
        now_s = self._clock.at(now_s)
        its, this = self._provider(provider), self._model(provider, model)
        if its.key_refused or this.disabled:
            return "skipped:disabled"
        if now_s < max(its.quota_until_s, this.quota_until_s) or not this.breaker.allows(now_s):
            return "skipped:breaker"
        if now_s < its.not_before_s:
            return "skipped:not_before"
        if not (its.calls.has(1, now_s) and its.tokens.has(tokens, now_s)):
            return "skipped:limiter"
        its.calls.try_acquire(1, now_s)
        its.tokens.try_acquire(tokens, now_s)
        this.breaker.try_acquire(now_s)
        return None

    def report(
        self,
        provider: str,
        model: str,
        outcome: str,
        now_s: float,
        retry_after_s: float | None = None,
        *,
        alone: bool = False,
    ) -> str | None:
        """What became of a call that was allowed, once for each.

        Args:
            outcome: Its outcome code. Any "skipped:..." is a call that was allowed but never sent: it gives the
                breaker's trial back, not what it took of the buckets.
            retry_after_s: How long the provider asks us to wait ("rate_limited" only); None, or nothing that can be
                waited for: it does not say.
            alone: What it says of key, quota and limits is held against this model only: a candidate on trial must not
                take the provider's other models down, nor a model that this key may not use.

        Returns:
            A line for an operator if one should know: the key was refused, the quota is used up, the model was
            disabled, the breaker opened or closed. Once for each time it begins, else None.
        """
        now_s = self._clock.at(now_s)
        its, this = self._provider(provider), self._model(provider, model)
        unknown = Result.NEUTRAL if outcome.startswith("skipped:") else Result.FAILED
        changed = this.breaker.report(RESULTS.get(outcome, unknown), now_s)
        if outcome in SUCCESSES:
            its.limited = 0
        if outcome in UNDERSTOOD:
            this.bad_requests = 0
        match outcome:
            case "auth" if alone:
                told, this.disabled = this.disabled, True
                words = "this key may not use it; it is not asked until the next start"
                return None if told else f"{model} at {provider}: {words}"
            case "quota" if alone:  # another role may play with this model: it comes back as a provider does
                return self._out_of_quota(f"{model} at {provider}", "it is not", this, now_s)
            case "rate_limited" if alone:
                return None
            case "auth":
                return self._refuse_key(provider, its)
            case "quota":
                return self._out_of_quota(provider, "none of its models is", its, now_s)
            case "bad_request":
                return self._bad_request(provider, model, this)
            case "rate_limited":
                its.not_before_s = max(its.not_before_s, now_s + _wait_s(retry_after_s, its.limited))
                its.limited += 1
        return None if changed is None else f"{model} at {provider}: {changed}"

    def state(self, provider: str, model: str, now_s: float) -> str:
        """For metrics: "disabled", "open" (out of quota too), "half_open", "waiting" (rate limited) or "closed"."""
        now_s = self._clock.at(now_s)
        its, this = self._provider(provider), self._model(provider, model)
        if its.key_refused or this.disabled:
            return "disabled"
        if now_s < max(its.quota_until_s, this.quota_until_s):
            return State.OPEN.value
        state = this.breaker.state(now_s)
        if state == State.CLOSED and now_s < its.not_before_s:
            return "waiting"
        return state.value

    def _refuse_key(self, provider: str, its: _Provider) -> str | None:
        if its.key_refused:
            return None
        its.key_refused = True
        return f"{provider}: it refuses the key; none of its models is asked until a start with a good one"

    def _out_of_quota(self, name: str, who: str, its: _Provider | _Model, now_s: float) -> str | None:
        known = now_s < its.quota_until_s
        its.quota_until_s = now_s + self._guards.quota_s
        return None if known else f"{name}: quota or balance used up; {who} asked for {self._guards.quota_s:g} s"

    def _bad_request(self, provider: str, model: str, this: _Model) -> str | None:
        this.bad_requests += 1
        if this.disabled or this.bad_requests < self._guards.bad_requests:
            return None
        this.disabled = True
        return (
            f"{model} at {provider}: {this.bad_requests} bad requests in a row; not asked until the next start. Is it "
            "gone, or is its table in [models] wrong?"
        )

    def _provider(self, name: str) -> _Provider:
        its = self._providers.get(name)
        if its is None:
            limits = self._configured.get(name) or ProviderSettings.model_construct()  # the defaults of each field
            calls = Bucket(limits.burst, limits.calls_per_s)
            its = _Provider(calls, Bucket(limits.tokens_per_minute, limits.tokens_per_minute / 60))
            self._providers[name] = its
        return its

    def _model(self, provider: str, name: str) -> _Model:
        this = self._models.get((provider, name))
        if this is None:
            this = self._models[provider, name] = _Model(Breaker(self._guards, self._lost_after_s))
        return this


def _wait_s(asked_s: float | None, limited_before: int) -> float:
    """How long to wait after a "too many requests"; `limited_before`: how many there were in a row before it."""
    if asked_s is not None and math.isfinite(asked_s) and asked_s >= 0:
        return min(asked_s, ASKED_WAIT_MAX_S)
    doublings = min(limited_before, 16)  # far past the longest wait, and far from what a float cannot hold
    return min(UNASKED_WAIT_S * 2.0**doublings, UNASKED_WAIT_MAX_S)
