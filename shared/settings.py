"""Settings: `deploy/arb.toml` (defaults) < the user's `arb.toml` < `ARB_*` variables, into one frozen model.

Read once where a service starts, then passed on as values. Unknown names and impossible values stop the start
with the name of the setting and what is allowed. Keys of models come from variables or secret files only.
"""

import datetime
import os
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from shared import secrets, symbols
from shared.errors import SettingsError, UnknownExchange

PREFIX = "ARB_"
NOT_SETTINGS = ("ARB_CONFIG", "ARB_TEST_BROKER", "ARB_TEST_LITELLM", "ARB_CACHE_DIR", "ARB_PLAIN")
"""Variables of ours that are read elsewhere: settings file, the tests' broker and gateway, cache folder."""

Bps = Annotated[Decimal, Field(ge=-10_000, le=100_000)]
Usd = Annotated[Decimal, Field(ge=0)]
Ms = Annotated[int, Field(ge=0, le=86_400_000)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class KafkaSettings(_Section):
    """`options` are librdkafka's own names and go to every client as they stand; `option_files` name files that hold
    the value instead: a mounted secret, for `sasl.password` and the like."""

    servers: str = Field(min_length=1)
    group_protocol: Literal["classic", "consumer"] = "classic"
    options: dict[str, str | int | float | bool] = Field(default={}, repr=False)
    option_files: dict[str, Path] = {}

    @model_validator(mode="after")
    def _options(self) -> "KafkaSettings":
        if twice := sorted(self.options.keys() & self.option_files.keys()):
            raise ValueError(f"{', '.join(twice)}: in options and in option_files; one of them only")
        if STATISTICS in self.options.keys() | self.option_files.keys():
            raise ValueError(f"{STATISTICS}: is ours, whether a service is ready rests on it; take it out")
        for name, value in self.options.items():
            if name.endswith(_SECRET_OPTIONS):
                secrets.register(SecretStr(str(value)), certain=True)
        return self

    @classmethod
    def of(cls, servers: str, options: Mapping[str, str | int | float | bool]) -> "KafkaSettings":
        """For programs that have no settings file.

        Raises:
            SettingsError: a value is impossible.
        """
        try:
            return cls(servers=servers, options=dict(options))
        except ValidationError as error:
            raise SettingsError(_one_line(error)) from None

    def client_options(self) -> dict[str, str | int | float | bool]:
        """What goes to every client of librdkafka; files are read each time, so a new client has the newest secret.

        Raises:
            SettingsError: a file of `option_files` or one that an option names cannot be read, or a secret is empty.
        """
        for name, value in self.options.items():  # librdkafka's own words for it are OpenSSL's error numbers
            if name.startswith("ssl.") and name.endswith(".location") and value != "probe":
                _require_readable(name, Path(str(value)))
        return {**self.options, **{name: _of_file(name, file) for name, file in self.option_files.items()}}


STATISTICS = "statistics.interval.ms"
"""The option of librdkafka that nobody else may set."""

_SECRET_OPTIONS = ("password", "passphrase", "secret", "key.pem", "sasl.oauthbearer.config")
"""How the names of librdkafka's options end whose values must be in no log."""

_OPEN_OPTIONS = ("username", "client.id", "ca.pem", "certificate.pem")
"""How those end that may be seen even where a file holds them."""


def _require_readable(option: str, place: Path) -> None:
    """A file, or a folder of certificates."""
    try:
        if place.is_dir():
            os.listdir(place)
        else:
            place.open("rb").close()
    except FileNotFoundError:
        raise SettingsError(f"kafka.options: {option}: there is no {place}") from None
    except OSError as error:
        raise SettingsError(f"kafka.options: {option}: {place}: {error.strerror}") from None


def _of_file(option: str, file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "is no text"
        raise SettingsError(f"kafka.option_files: {option}: {file}: {words}") from None
    if not text:
        raise SettingsError(f"kafka.option_files: {option}: {file} is empty")
    if not option.endswith(_OPEN_OPTIONS):
        secrets.register(SecretStr(text), certain=True)
    return text


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"]
    json_lines: bool = Field(alias="json")


class MetricsSettings(_Section):
    port: int = Field(ge=0, le=65535)
    host: str = Field(min_length=1)


class CollectorSettings(_Section):
    levels: int = Field(ge=1, le=100)
    max_silence_ms: Ms
    first_data_s: float = Field(gt=0)
    connect_s: float = Field(gt=0)
    backoff_max_s: float = Field(gt=0)
    fast_tops: bool
    refresh_s: float = Field(gt=0)
    instruments_s: float = Field(gt=0)
    clock_s: float = Field(gt=0)


class AssetsSettings(_Section):
    """Base assets that may be watched. Equal tickers can be different coins: each one is a decision."""

    allow: tuple[str, ...]


class Fee(_Section):
    """One dated line of a fee schedule; `symbol` None: every pair of the exchange, `tier` None: every tier.

    `in_base`: on buying, the exchange takes the fee out of the coin that was bought.
    """

    valid_from: datetime.date
    taker_bps: Bps
    symbol: str | None = None
    tier: str | None = None
    in_base: bool = False


class SecondSource(_Section):
    """Another protocol that brings the same books, used while the first one brings no data."""

    protocol: str = Field(min_length=1)
    ws_url: str = Field(pattern=r"^wss?://")
    rest_url: str = Field(pattern=r"^https?://")


class ExchangeSettings(_Section):
    """Where an exchange is, what to watch there, and what trading there costs."""

    enabled: bool = True
    ws_url: str = Field(pattern=r"^wss?://")
    rest_url: str = Field(pattern=r"^https?://")
    symbols: tuple[str, ...]
    book_depth: int = Field(ge=0)
    fees: tuple[Fee, ...]
    fee_tier: str | None = None
    min_notional_usd: Usd
    lot_step: Decimal = Field(gt=0)
    balances: dict[str, Annotated[Decimal, Field(ge=0)]] | None = None
    second: SecondSource | None = None

    @model_validator(mode="after")
    def _tier(self) -> "ExchangeSettings":
        tiers = sorted({fee.tier for fee in self.fees if fee.tier is not None})
        if self.fee_tier is not None and self.fee_tier not in tiers:
            raise ValueError(f"fee_tier: no fee has tier {self.fee_tier!r}; there is {', '.join(tiers) or 'none'}")
        return self

    @model_validator(mode="after")
    def _canonical(self) -> "ExchangeSettings":
        for symbol in self.symbols:
            if not symbols.is_canonical(symbol):
                raise ValueError(f"symbols: {symbol!r} is not of the form BASE-QUOTE, such as BTC-USDT")
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError("symbols: a symbol stands twice")
        return self


class DetectorSettings(_Section):
    open_net_bps: Bps
    close_net_bps: Bps
    persistence_ms: Ms
    close_after_ms: Ms
    max_notional_usd: Usd
    max_depth_share: Decimal = Field(gt=0, le=1)
    max_silence_ms: Ms
    max_book_age_ms: Ms
    max_skew_ms: Ms
    sanity_cap_bps: Bps
    update_bps: Bps
    update_min_ms: Ms
    update_max_ms: Ms
    expires_ms: Ms
    rejection_linger_ms: Ms
    rate_exchanges: tuple[str, ...]
    not_the_same: tuple[str, ...]
    outcome_delays_ms: tuple[Annotated[int, Field(ge=1, le=60_000)], ...]
    routes: bool
    bridges: tuple[str, ...]

    @model_validator(mode="after")
    def _hysteresis(self) -> "DetectorSettings":
        if self.close_net_bps > self.open_net_bps:
            raise ValueError("close_net_bps must not be above open_net_bps")
        return self


class DeciderSettings(_Section):
    panel_deadline_ms: Ms
    publish_margin_ms: Ms
    min_useful_ms: Ms
    max_age_ms: Ms
    max_silence_ms: Ms
    max_panels_in_flight: int = Field(ge=1, le=256)
    verdict_ttl_ms: Ms
    rules_only_may_execute: bool
    threshold: int = Field(ge=0, le=1000)
    p_edge_min: float = Field(ge=0, le=1)
    prior: float = Field(ge=0, le=1)
    prior_weight: float = Field(ge=0, le=100)
    min_net_bps: Bps
    max_skew_ms: Ms
    max_call_usd: Usd
    max_opportunity_usd: Usd
    max_minute_usd: Usd
    max_day_usd: Usd
    state_file: Path | None = None
    weights_file: Path | None = None
    kill_switch: Path | None = None
    probe: bool
    ping_s: float = Field(gt=0)


class GuardSettings(_Section):
    """What keeps a model that is slow, wrong or gone from costing time and money. Times in seconds or ms."""

    window_s: float = Field(gt=0)
    consecutive: int = Field(ge=1)
    error_share: Share
    error_min_calls: int = Field(ge=1)
    error_share_few: Share
    error_min_calls_few: int = Field(ge=1)
    slow_share: Share
    slow_min_calls: int = Field(ge=1)
    slow_probe_s: float = Field(gt=0)
    cooldown_s: float = Field(gt=0)
    cooldown_max_s: float = Field(gt=0)
    successes_to_close: int = Field(ge=1)
    quota_s: float = Field(gt=0)
    bad_requests: int = Field(ge=1)
    hedge: bool
    hedge_share: Share
    shadow_max_day_usd: Usd
    candidate_min_calls: int = Field(ge=1)
    candidate_error_share: Share
    candidate_consecutive: int = Field(ge=1)
    candidate_slow_factor: float = Field(ge=1)
    candidate_brier: float = Field(ge=0, le=1)


class ProviderSettings(_Section):
    """An OpenAI-compatible endpoint, where its key is found, and how much may be asked of it.

    Attributes:
        key_pattern: What a key looks like (a regular expression for all of it); None: anything.
        burst, calls_per_s: Bucket of calls: its size, and how fast it fills again.
        tokens_per_minute: Bucket of tokens (estimated in plus the most out), full at the start.
        max_day_usd: Cap of a calendar day (UTC) for this provider, beside those in `[decider]`.
    """

    base_url: str = Field(pattern=r"^https?://")
    api_key_env: str = Field(min_length=1)
    api_key_file: Path | None = None
    key_pattern: str | None = None
    burst: int = Field(default=50, ge=1)
    calls_per_s: float = Field(default=20, gt=0)
    tokens_per_minute: int = Field(default=1_000_000, ge=1)
    max_day_usd: Usd = Decimal(10)

    @field_validator("key_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern or None

    def api_key(self, environ: Mapping[str, str]) -> SecretStr | None:
        """The key, from the secret file if one is named, else from the variable; None if there is none.

        The file is named by the setting, else by the variable with `_FILE` after its name, as containers' secrets are.

        Raises:
            SettingsError: the file cannot be read or is empty, or the key does not look like one of this provider.
        """
        named = environ.get(f"{self.api_key_env}_FILE")
        file = self.api_key_file or (Path(named) if named else None)
        if file is not None:
            source = f"the file {file}"
            try:
                text = file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"api_key_file: {error}") from None
            if not text:
                raise SettingsError(f"api_key_file: {file} is empty")
        else:
            source = self.api_key_env
            text = environ.get(self.api_key_env, "").strip()
        if not text:
            return None
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise SettingsError(f"the key in {source} has characters that no key has: was it pasted whole?")
        if self.key_pattern is not None and re.fullmatch(self.key_pattern, text) is None:
            raise SettingsError(
                f"the key in {source} ({len(text)} characters) does not look like one for {self.base_url}: expected "
                f"{self.key_pattern} (key_pattern in arb.toml)"
            )
        return SecretStr(text)


class ModelChoice(_Section):
    """A model at a provider."""

    provider: str
    model: str


class Candidate(ModelChoice):
    """A model that may come to play the role: first beside it (`shadow`, never counted), then for a share of the
    opportunities (`canary`). A bad one is rolled back by itself; forward goes only who edits this setting."""

    stage: Literal["off", "shadow", "canary"]
    share: Share = 0.05


class RoleSettings(ModelChoice):
    """Who plays a role, with which prompt (a file in `prompts/`), and what it weighs until outcomes say better."""

    prompt: str = Field(pattern=r"^[a-z]+-[0-9]+$")
    weight: float = Field(default=1.0, ge=0, le=1)
    fallback: ModelChoice | None = None
    candidate: Candidate | None = None

    def choices(self) -> list[tuple[str, ModelChoice]]:
        """Every model that may be asked, each with the place of its setting within the role's."""
        named = [("", self), (".fallback", self.fallback), (".candidate", self.candidate)]
        return [(where, chosen) for where, chosen in named if chosen is not None]


class Price(_Section):
    """What a million tokens cost in USD from a day on."""

    valid_from: datetime.date
    input: Usd = Field(alias="in")
    cached: Usd
    output: Usd = Field(alias="out")


class ModelSettings(_Section):
    """What a model can do and costs.

    Attributes:
        name: What its provider calls it, if not the name of the table.
        request: Merged into each call as it stands.
        request_if_refused: Used instead from then on, once `request` has been answered by a 400.
        slow_ms: An answer that takes longer is used, but counts as slow.
        p95_ms: When a hedge may be sent.
        timeout_ms: When a call is given up; None: when the panel ends, or early enough to ask the role's fallback.
        shutdown_date: The provider's last day for it: after it the start fails.
    """

    name: str | None = None
    structured: Literal["json_schema", "json_object"]
    token_param: Literal["max_tokens", "max_completion_tokens"]
    request: dict[str, Any] = {}
    request_if_refused: dict[str, Any] | None = None
    max_out: int = Field(ge=16, le=4096)
    slow_ms: int = Field(default=1200, ge=1)
    p95_ms: int = Field(default=1000, ge=1)
    timeout_ms: int | None = Field(default=None, ge=1)
    prices: tuple[Price, ...] = Field(min_length=1)
    shutdown_date: datetime.date | None = None

    def price(self, day: datetime.date) -> Price:
        """The price in force on a day; before the first, the first."""
        return next((price for price in reversed(self.prices) if price.valid_from <= day), self.prices[0])

    @field_validator("prices")
    @classmethod
    def _in_order(cls, prices: tuple[Price, ...]) -> tuple[Price, ...]:
        return tuple(sorted(prices, key=lambda price: price.valid_from))


class Settings(BaseSettings):
    """Everything that can be set. Build it with `load`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
    )

    kafka: KafkaSettings
    log: LogSettings
    metrics: MetricsSettings
    collector: CollectorSettings
    assets: AssetsSettings
    exchanges: dict[str, ExchangeSettings]
    detector: DetectorSettings
    decider: DeciderSettings
    guards: GuardSettings
    providers: dict[str, ProviderSettings]
    roles: dict[Literal["sentiment", "risk", "volatility"], RoleSettings]
    models: dict[str, ModelSettings]

    @model_validator(mode="after")
    def _allowed(self) -> "Settings":
        for name, exchange in self.exchanges.items():
            for symbol in exchange.symbols:
                base = symbols.base_of(symbol)
                if base not in self.assets.allow and base not in symbols.CASH:
                    raise ValueError(
                        f"exchanges.{name}.symbols: {base} of {symbol} is not in assets.allow; add it there if it is "
                        "the same coin on every exchange that lists the ticker"
                    )
        return self

    @model_validator(mode="after")
    def _references(self) -> "Settings":
        for role, settings in self.roles.items():
            for where, chosen in settings.choices():
                if chosen.provider not in self.providers:
                    raise ValueError(f"roles.{role}{where}.provider: no provider {chosen.provider!r} in [providers]")
                if chosen.model not in self.models:
                    raise ValueError(f"roles.{role}{where}.model: no model {chosen.model!r} in [models]")
        return self

    def exchange(self, name: str) -> ExchangeSettings:
        """Settings of one exchange.

        Raises:
            UnknownExchange: there is no such exchange.
        """
        if name not in self.exchanges:
            raise UnknownExchange(name, tuple(self.exchanges))
        return self.exchanges[name]

    def enabled_exchanges(self) -> dict[str, ExchangeSettings]:
        """Those that are switched on, in the order of the file."""
        return {name: exchange for name, exchange in self.exchanges.items() if exchange.enabled}


def default_file() -> Path:
    """The file of defaults: beside this module in a wheel, in `deploy/` in a checkout."""
    packaged = Path(__file__).with_name("arb.toml")
    return packaged if packaged.exists() else Path(__file__).parents[1] / "deploy" / "arb.toml"


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where what was fetched once is kept (jars, metadata): ARB_CACHE_DIR, else the user's cache folder."""
    if chosen := environ.get("ARB_CACHE_DIR"):
        return Path(chosen)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arbiter"


def load(file: Path | None = None) -> Settings:
    """Settings from the defaults, `file` (else ARB_CONFIG, else ./arb.toml if there) and the variables.

    ARB_CONFIG may name several, with a colon between (as in PATH); what comes later wins. A folder stands for all its
    `*.toml`, in the order of their names.

    Raises:
        SettingsError: names the setting, what is wrong with it and, where it is a choice, what is allowed.
    """
    files = [default_file(), *files_of(file)]
    for path in files:
        try:
            tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path}: {error}") from None
    _refuse_unknown_variables(os.environ)

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            tomls = [TomlConfigSettingsSource(settings_cls, toml_file=path) for path in reversed(files)]
            return (init_settings, env_settings, *tomls)

    try:
        return Loaded()  # type: ignore[call-arg]  # every field comes from the files and variables
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    except Exception as error:  # pydantic-settings wraps a JSON error of a variable in its own class
        if type(error).__name__ == "SettingsError":
            raise SettingsError(f"{error} (a table in a variable is JSON)") from None
        raise


def files_of(file: Path | None = None) -> list[Path]:
    """The files that `load` reads over the defaults, in this order.

    Raises:
        SettingsError: one that is named is not there, or a folder cannot be read.
    """
    named = [] if file is None else [file]
    if file is None and (variable := os.environ.get("ARB_CONFIG")):
        named = [Path(part) for part in variable.split(os.pathsep) if part]
    elif file is None and Path("arb.toml").exists():
        named = [Path("arb.toml")]
    return [inner for path in named for inner in _files(path)]


def _files(path: Path) -> list[Path]:
    """A file itself; of a folder its settings files."""
    try:
        if path.is_dir():
            return [path / name for name in sorted(os.listdir(path)) if name.endswith(".toml") and name[0] != "."]
    except OSError as error:
        raise SettingsError(f"settings folder {path}: {error.strerror}") from None
    if not path.exists():
        raise SettingsError(f"settings file {path} does not exist")
    return [path]


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    for name in environ:
        if not name.upper().startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        section, _, setting = name[len(PREFIX) :].lower().partition("_")
        known = Settings.model_fields.get(section)
        if known is None:
            raise SettingsError(f"{name}: no settings table {section!r}; there are {', '.join(_sections())}")
        table = known.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            names = [field.alias or key for key, field in table.model_fields.items()]
            if setting and setting not in names:
                raise SettingsError(f"{name}: no setting {section}.{setting}; there are {', '.join(names)}")


def _sections() -> list[str]:
    return list(Settings.model_fields)


def _one_line(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        words = "no such setting" if item["type"] == "extra_forbidden" else re.sub(r"^Value error, ", "", item["msg"])
        problems.append(f"{where}: {words}" if where else words)
    return "; ".join(problems)
