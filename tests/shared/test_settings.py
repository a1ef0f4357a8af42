"""Settings: what is merged, what is refused, and in which words."""

import datetime
import os
from decimal import Decimal
from pathlib import Path

import pytest

from shared import fees, settings
from shared.errors import SettingsError, UnknownExchange


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("ARB_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_complete() -> None:
    loaded = settings.load()
    assert set(loaded.exchanges) == {"binance", "coinbase", "kraken", "bybit", "okx"}
    assert loaded.detector.open_net_bps == Decimal(5)


def test_a_variable_overrides_the_file_which_overrides_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arb.toml").write_text('[detector]\nopen_net_bps = "7"\npersistence_ms = 250\n')
    monkeypatch.setenv("ARB_DETECTOR_OPEN_NET_BPS", "9")
    loaded = settings.load()
    assert (loaded.detector.open_net_bps, loaded.detector.persistence_ms) == (Decimal(9), 250)
    assert loaded.detector.sanity_cap_bps == Decimal(200)


def test_a_table_in_a_variable_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARB_EXCHANGES_KRAKEN", '{"ws_url": "ws://127.0.0.1:9/v2"}')
    kraken = settings.load().exchanges["kraken"]
    assert kraken.ws_url == "ws://127.0.0.1:9/v2"
    assert "BTC-USD" in kraken.symbols


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ARB_DETECTOR_OPEN_BPS", "5", "no setting detector.open_bps; there are open_net_bps"),
        ("ARB_NOPE", "5", "no settings table 'nope'; there are kafka"),
        ("ARB_LOG_LEVEL", "loud", "log.level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ("ARB_DETECTOR_OPEN_NET_BPS", "much", "detector.open_net_bps"),
        ("ARB_DETECTOR_CLOSE_NET_BPS", "50", "close_net_bps must not be above open_net_bps"),
        ("ARB_EXCHANGES_KRAKEN", '{"ws_url": "http://h"}', "exchanges.kraken.ws_url"),
        ("ARB_EXCHANGES_KRAKEN", '{"symbols": ["BTCUSD"]}', "'BTCUSD' is not of the form BASE-QUOTE"),
        ("ARB_EXCHANGES_KRAKEN", '{"symbols": ["BTC-USD", "BTC-USD"]}', "a symbol stands twice"),
        ("ARB_EXCHANGES_KRAKEN", '{"colour": 1}', "exchanges.kraken.colour: no such setting"),
        ("ARB_ROLES_RISK", '{"provider": "nobody"}', "no provider 'nobody' in [providers]"),
        ("ARB_ROLES_RISK", '{"model": "none"}', "no model 'none' in [models]"),
        ("ARB_CONFIG", "missing.toml", "settings file missing.toml does not exist"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "arb.toml").write_text("[detector]\nopen_net_bps =\n")
    with pytest.raises(SettingsError, match=r"arb\.toml: .*line 2"):
        settings.load()


def test_an_unknown_exchange_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownExchange, match="unknown exchange 'mtgox'; known: binance, coinbase, kraken"):
        settings.load().exchange("mtgox")


PLANTED = "sk-planted-0123456789abcdef"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sk-short", "8 characters"),
        ("AIza0123456789abcdef0123456789abcdef0123", "does not look like one"),
        ("sk-0123456789 abcdef0123456789", "characters that no key has"),
        ("sk-0123456789\u00e9abcdef0123456789", "characters that no key has"),
    ],
)
def test_a_key_of_the_wrong_shape_is_one_line_that_does_not_show_it(key: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        settings.load().providers["openai"].api_key({"OPENAI_API_KEY": key})
    assert "OPENAI_API_KEY" in str(caught.value)
    assert key not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prices_are_dated() -> None:
    first = settings.Price.model_validate({"valid_from": "2026-01-01", "in": "1", "cached": "1", "out": "1"})
    second = first.model_copy(update={"valid_from": datetime.date(2026, 6, 1)})
    written = settings.load().models["gpt-4.1"].model_dump(exclude={"prices"})
    model = settings.ModelSettings(**written, prices=(second, first))
    assert model.prices == (first, second)
    assert model.price(datetime.date(2026, 5, 31)) == first
    assert model.price(datetime.date(2026, 6, 1)) == second
    assert model.price(datetime.date(2025, 1, 1)) == first, "before the first: the first"


def test_a_key_comes_from_its_variable_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    loaded = settings.load()
    key = loaded.providers["openai"].api_key(os.environ)
    assert key is not None
    assert key.get_secret_value() == PLANTED
    assert PLANTED not in repr(key) + repr(loaded)


def test_a_key_comes_from_a_secret_file_if_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{PLANTED}\n")
    monkeypatch.setenv("ARB_PROVIDERS_OPENAI", f'{{"api_key_file": "{tmp_path}/key"}}')
    key = settings.load().providers["openai"].api_key({})
    assert key is not None
    assert key.get_secret_value() == PLANTED


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_missing_or_empty_secret_file_is_an_error(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    provider = settings.ProviderSettings(base_url="http://h", api_key_env="X", api_key_file=file)
    with pytest.raises(SettingsError, match="api_key_file"):
        provider.api_key({})


def test_a_tier_that_no_fee_has_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "arb.toml"
    fees = '[{ valid_from = 2026-07-26, taker_bps = "80" }, { valid_from = 2026-07-26, taker_bps = "1", tier = "vip" }]'
    file.write_text(f'[exchanges.kraken]\nfee_tier = "vipp"\nfees = {fees}\n')
    with pytest.raises(SettingsError, match="fee_tier: no fee has tier 'vipp'; there is vip"):
        settings.load(file)
    file.write_text(f'[exchanges.kraken]\nfee_tier = "vip"\nfees = {fees}\n')
    kraken = settings.load(file).exchanges["kraken"]
    day = datetime.date(2026, 8, 1)
    assert fees_of(kraken, "BTC-USD", day) == Decimal(1)
    assert fees_of(kraken.model_copy(update={"fee_tier": None}), "BTC-USD", day) == Decimal(80)


def fees_of(exchange: settings.ExchangeSettings, symbol: str, day: datetime.date) -> Decimal:
    found = fees.taker_fee(exchange.fees, symbol, exchange.fee_tier, day)
    assert found is not None
    return found.taker_bps


def test_the_latest_valid_fee_counts_and_a_pair_of_its_own_wins() -> None:
    schedule = [
        settings.Fee(valid_from=datetime.date(2026, 1, 1), taker_bps=Decimal(40)),
        settings.Fee(valid_from=datetime.date(2026, 7, 1), taker_bps=Decimal(80)),
        settings.Fee(valid_from=datetime.date(2026, 3, 1), taker_bps=Decimal(0), symbol="USDC-USD"),
    ]
    march, august = datetime.date(2026, 3, 31), datetime.date(2026, 8, 1)
    assert fees.taker_fee(schedule, "BTC-USD", None, march).taker_bps == Decimal(40)
    assert fees.taker_fee(schedule, "BTC-USD", None, august).taker_bps == Decimal(80)
    assert fees.taker_fee(schedule, "USDC-USD", None, august).taker_bps == Decimal(0)
    assert fees.taker_fee(schedule, "BTC-USD", None, datetime.date(2025, 12, 31)) is None


def test_a_folder_stands_for_its_toml_files_in_order_of_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "20-later.toml").write_text('[detector]\nopen_net_bps = "9"\n')
    (tmp_path / "10-first.toml").write_text('[detector]\nopen_net_bps = "8"\nmax_skew_ms = 1500\n')
    (tmp_path / ".hidden.toml").write_text("[detector]\nopen_net_bps = 99\n")
    (tmp_path / "notes.md").write_text("no settings")
    monkeypatch.setenv("ARB_CONFIG", str(tmp_path))
    loaded = settings.load()
    assert (loaded.detector.open_net_bps, loaded.detector.max_skew_ms) == (9, 1500)


def test_an_empty_folder_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = settings.load()
    monkeypatch.setenv("ARB_CONFIG", str(tmp_path))
    assert settings.load().model_dump() == plain.model_dump()


def test_several_files_and_folders_are_read_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.toml").write_text('[detector]\nopen_net_bps = "8"\n')
    (tmp_path / "last.toml").write_text('[detector]\nopen_net_bps = "7"\n')
    monkeypatch.setenv("ARB_CONFIG", f"{tmp_path}/folder:{tmp_path}/last.toml:")
    assert settings.load().detector.open_net_bps == 7
    monkeypatch.setenv("ARB_CONFIG", f"{tmp_path}/last.toml:{tmp_path}/folder")
    assert settings.load().detector.open_net_bps == 8
    monkeypatch.setenv("ARB_CONFIG", f"{tmp_path}/folder:{tmp_path}/gone.toml")
    with pytest.raises(SettingsError, match=r"settings file .*gone\.toml does not exist"):
        settings.load()


def test_a_key_comes_from_the_file_that_a_variable_names(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{PLANTED}\n")
    openai = settings.load().providers["openai"]
    key = openai.api_key({"OPENAI_API_KEY_FILE": str(tmp_path / "key"), "OPENAI_API_KEY": "sk-another-0123456789ab"})
    assert key is not None
    assert key.get_secret_value() == PLANTED
    assert openai.api_key({"OPENAI_API_KEY_FILE": ""}) is None, "as Compose passes it where no file is named"
    with pytest.raises(SettingsError, match="api_key_file"):
        openai.api_key({"OPENAI_API_KEY_FILE": str(tmp_path / "gone")})
