"""The settings file that sends services to the simulator, and nowhere else."""

import tomllib
from pathlib import Path

import pytest

from services.simulator import addresses
from services.simulator.__main__ import Options, health, main
from shared import settings
from shared.errors import SettingsError

SERVED = {
    name: {"ws_url": f"ws://simulator:{port}", "rest_url": f"http://simulator:{port}"}
    for port, name in enumerate(("binance", "coinbase", "kraken", "bybit"), 9001)
}
MODELS = "http://simulator:9010/v1"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("OPENAI", "GEMINI", "DEEPSEEK", "HOLYSHEEP"):
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)
    path = tmp_path / "feeds.toml"
    monkeypatch.setenv("ARB_CONFIG", str(path))
    return path


def test_no_exchange_and_no_provider_keeps_its_real_address(file: Path):
    real = settings.load(settings.default_file())
    served = {**SERVED, "coinbase": {**SERVED["coinbase"], "second": SERVED["kraken"]}}
    addresses.write(file, real, served, MODELS)
    loaded = settings.load()
    for name, exchange in loaded.exchanges.items():
        wanted = served.get(name, addresses.NOWHERE)
        assert (exchange.ws_url, exchange.rest_url) == (wanted["ws_url"], wanted["rest_url"])
        if exchange.second is not None:
            assert exchange.second.protocol == real.exchanges[name].second.protocol
            assert exchange.second.ws_url == SERVED["kraken"]["ws_url"]
    assert loaded.exchanges["okx"].ws_url == "wss://not-simulated.invalid"
    assert {provider.base_url for provider in loaded.providers.values()} == {MODELS}
    assert not [host for host in ("openai.com", "binance", "okx.com") if f"/{host}" in file.read_text()]


def test_a_second_source_that_is_not_simulated_is_nowhere(file: Path):
    addresses.write(file, settings.load(settings.default_file()), SERVED, MODELS)
    second = settings.load().exchanges["coinbase"].second
    assert second is not None
    assert second.ws_url == "wss://not-simulated.invalid"


def test_no_real_key_reaches_the_simulated_models(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    addresses.write(file, settings.load(settings.default_file()), SERVED, MODELS)
    (tmp_path / "real").write_text("sk-0123456789abcdef0123456789")
    environment = {"OPENAI_API_KEY": "sk-0123456789abcdef0123456789", "OPENAI_API_KEY_FILE": str(tmp_path / "real")}
    key = settings.load().providers["openai"].api_key(environment)
    assert key is not None
    assert key.get_secret_value() == addresses.KEY
    monkeypatch.setenv("ARB_PROVIDERS_OPENAI", f'{{"api_key_file": "{tmp_path}/real"}}')
    with pytest.raises(SettingsError, match="does not look like one for http://simulator"):
        settings.load().providers["openai"].api_key({})


def test_a_simulator_writes_its_own_file_again_and_no_other(file: Path):
    loaded = settings.load(settings.default_file())
    addresses.write(file, loaded, SERVED, "http://old:1/v1")
    addresses.write(file, loaded, SERVED, MODELS)
    assert tomllib.loads(file.read_text())["providers"]["openai"]["base_url"] == MODELS
    assert sorted(path.name for path in file.parent.iterdir()) == ["feeds.key", "feeds.toml"]
    file.write_text("# Live public feeds\n")
    with pytest.raises(SettingsError, match="begins with '# Live public feeds'"):
        addresses.write(file, loaded, SERVED, MODELS)
    assert file.read_text() == "# Live public feeds\n"


def test_a_key_that_is_not_the_simulated_models_stays_as_it_is_and_is_not_shown(file: Path):
    loaded, key = settings.load(settings.default_file()), file.with_suffix(".key")
    for content in (b"sk-0123456789abcdef0123456789\n", b"\xff"):
        key.write_bytes(content)
        with pytest.raises(SettingsError, match=r"feeds\.key holds another key") as caught:
            addresses.write(file, loaded, SERVED, MODELS)
        assert "0123456789" not in str(caught.value)
        assert key.read_bytes() == content
        assert not file.exists()
    with pytest.raises(SettingsError, match=r"name it \.toml"):
        addresses.write(key, loaded, SERVED, MODELS)
    assert [path.name for path in file.parent.iterdir()] == ["feeds.key"]


def test_a_file_that_is_no_text_is_no_file_of_a_simulator(file: Path):
    file.write_bytes(b"\xff\xfe\nmore")
    with pytest.raises(SettingsError, match=r"is no file of a simulator .* begins with '\ufffd\ufffd'"):
        addresses.write(file, settings.load(settings.default_file()), SERVED, MODELS)
    assert file.read_bytes() == b"\xff\xfe\nmore"


def test_a_file_that_cannot_be_written_is_named(file: Path):
    with pytest.raises(SettingsError, match=r"--settings .*nowhere.*No such file"):
        addresses.write(file.parent / "nowhere" / "feeds.toml", settings.load(settings.default_file()), SERVED, MODELS)


@pytest.mark.parametrize(
    ("url", "host", "told"),
    [
        ("ws://0.0.0.0:9004/v2", "simulator", "ws://simulator:9004/v2"),
        ("http://127.0.0.1:9001", None, "http://127.0.0.1:9001"),
    ],
)
def test_others_are_told_the_name_by_which_they_reach_it(url: str, host: str | None, told: str):
    assert addresses.advertised(url, host) == told


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_everywhere_needs_a_name_to_tell_others(host: str):
    with pytest.raises(SettingsError, match=r"--host .* needs --advertise NAME"):
        main(settings.load(settings.default_file()), Options(host=host), health())
