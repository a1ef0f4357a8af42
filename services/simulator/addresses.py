"""Where the simulator is, as a settings file that sends collectors and deciders to it and nowhere else."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.settings import Settings

HEADER = "# Written by `arb simulate`: exchanges and models are simulated. Do not edit."
KEY = "simulated-0000-0000-0000"
KEY_PATTERN = "simulated-[0-9-]+"
"""A real key does not match it: a service that was given one by a variable does not start, and sends it nowhere."""

NOWHERE = {"ws_url": "wss://not-simulated.invalid", "rest_url": "https://not-simulated.invalid"}
"""For exchanges that are not simulated: their real addresses must not stand beside simulated ones."""


def advertised(url: str, host: str | None) -> str:
    """The URL as others reach it; `host` None: as it is."""
    parts = urlsplit(url)
    return url if host is None else parts._replace(netloc=f"{host}:{parts.port}").geturl()


def write(file: Path, settings: Settings, exchanges: Mapping[str, Mapping[str, Any]], model_base_url: str) -> None:
    """Write the settings file, and the simulated models' key beside it. Readers see the old file or the new one.

    Raises:
        SettingsError: one of the two is a file that no simulator wrote, or cannot be written.
    """
    key_file = file.absolute().with_suffix(".key")
    if key_file == file.absolute():
        raise SettingsError(f"--settings {file}: the models' key is put beside it under this name; name it .toml")
    try:
        if file.exists() and (first := (file.read_bytes().splitlines() or [b""])[0]) != HEADER.encode():
            raise SettingsError(
                f"--settings {file} is no file of a simulator and stays as it is; it begins with "
                f"{first[:80].decode(errors='replace')!r}"
            )
        if key_file.exists() and key_file.read_bytes().strip() != KEY.encode():
            raise SettingsError(
                f"--settings {file}: {key_file} holds another key than the simulated models' and stays as it is; "
                "name another file"
            )
        _replace(key_file, f"{KEY}\n")
        _replace(file, _toml(settings, exchanges, model_base_url, key_file))
    except OSError as error:
        raise SettingsError(f"--settings {file}: {error.strerror}") from None


def _replace(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _toml(settings: Settings, exchanges: Mapping[str, Mapping[str, Any]], model_base_url: str, key_file: Path) -> str:
    tables: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for name, configured in settings.exchanges.items():
        served = exchanges.get(name)
        tables["exchanges", name] = NOWHERE if served is None else {k: served[k] for k in NOWHERE}
        if configured.second is not None:
            tables["exchanges", name, "second"] = (served or {}).get("second", NOWHERE)
    provider = {"base_url": model_base_url, "api_key_file": str(key_file), "key_pattern": KEY_PATTERN}
    tables.update({("providers", name): provider for name in settings.providers})
    lines = [HEADER]
    for table, values in tables.items():
        lines += ["", f"[{'.'.join(_text(part) for part in table)}]"]
        lines += [f"{name} = {_text(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON's strings are TOML's
