"""Wiring of the simulator: sources, ports, and the one line that says where they are."""

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from services.simulator import addresses, capture
from services.simulator.exchanges import SERVERS
from services.simulator.faults import Fault, Faults
from services.simulator.faults import read as read_faults
from services.simulator.model import ModelEndpoint
from services.simulator.service import (
    FaultControl,
    ReplayedExchange,
    SimulatedExchange,
    Simulation,
    listen,
    serve_app,
    serve_models,
)
from shared import process
from shared.errors import SettingsError
from shared.health import Health
from shared.settings import Settings

PATHS = {"kraken": "/v2"}

CONTROL_HOST = "127.0.0.1"
"""Whoever reaches the control endpoint can break things: it is never offered beyond this machine."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to simulate; see `arb simulate --help`.

    Attributes:
        host: Where the exchanges and the models listen (the control endpoint never leaves this machine).
        advertise: The name by which others reach that host; None: `host` itself.
        ports: By exchange, "models" or "control"; absent or 0: any free one.
        settings: Write the addresses to this file, as settings for collectors and deciders.
    """

    seed: int = 1
    capture: tuple[Path, ...] = ()
    speed: float = 1.0
    loop: bool = False
    rate: float = 5.0
    pace: float = 1.0
    truth: Path | None = None
    model_faults: float = 0.04
    faults: Path | None = None
    host: str = "127.0.0.1"
    advertise: str | None = None
    ports: dict[str, int] = field(default_factory=dict)
    settings: Path | None = None


def health() -> Health:
    """What a simulator says of itself."""
    return Health("simulator", ("serving",))


def main(settings: Settings, options: Options, health: Health) -> None:
    """Serve until SIGTERM or SIGINT, or until captures played once have been played.

    Raises:
        InputError: a capture or the faults file cannot be read, or a fault names what is not simulated.
        SettingsError: options that do not fit together.
    """
    recordings = [capture.load(path) for path in options.capture]
    names = [recording.exchange for recording in recordings]
    if len(set(names)) != len(names):
        raise SettingsError(f"two captures of one exchange ({', '.join(names)}): one port can replay only one")
    if options.host in ("0.0.0.0", "::") and options.advertise is None:
        raise SettingsError(
            f"--host {options.host} needs --advertise NAME: the name by which others reach this machine"
        )
    known = {*(names or SERVERS), "models", "control"}
    for name in options.ports:
        if name not in known:
            raise SettingsError(f"--port {name}: nothing of that name is served; there are {', '.join(sorted(known))}")
    planned = [] if options.faults is None else read_faults(options.faults)
    process.run_async(lambda stop: _run(settings, options, recordings, planned, health, stop))


async def _run(
    settings: Settings,
    options: Options,
    recordings: list[capture.Recording],
    planned: list[Fault],
    health: Health,
    stop: asyncio.Event,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(health.beating())
        faults = Faults(random.Random(options.seed))
        exchanges: dict[str, SimulatedExchange] = {}
        seconds: dict[str, str] = {}
        if recordings:
            replays = [ReplayedExchange(recording, options.speed, options.loop, faults) for recording in recordings]
            exchanges.update({replay.name: replay for replay in replays})
            source = _all_played(replays)
        else:
            simulation = Simulation(
                settings, options.seed, options.rate, options.truth, time.time_ns, faults, options.pace
            )
            stack.callback(simulation.close)
            exchanges.update(simulation.exchanges)
            seconds = simulation.seconds
            source = simulation.run()
        control = FaultControl(faults, exchanges)
        faults.add(planned, time.monotonic_ns(), str(options.faults))
        where: dict[str, dict[str, Any]] = {}
        for name, exchange in exchanges.items():
            server, urls = await listen(exchange, options.host, options.ports.get(name, 0), PATHS.get(name, ""))
            await stack.enter_async_context(server)
            where[name] = {kind: addresses.advertised(url, options.advertise) for kind, url in urls.items()}
        for name, second in seconds.items():
            where[name]["second"] = where.pop(second)
        ends: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait()), asyncio.create_task(source)]
        ends.append(asyncio.create_task(control.run()))
        endpoint = ModelEndpoint(options.seed, options.model_faults)
        base_url, models, models_task = await serve_models(endpoint, options.host, options.ports.get("models", 0))
        control_url, controls, controls_task = await serve_app(
            control.app, CONTROL_HOST, options.ports.get("control", 0)
        )
        ends += [models_task, controls_task]
        base_url = addresses.advertised(base_url, options.advertise)
        if options.settings is not None:
            addresses.write(options.settings, settings, where, base_url)
        ready = {"exchanges": where, "model_base_url": base_url, "control_url": control_url}
        sys.stdout.write(orjson.dumps(ready).decode() + "\n")
        sys.stdout.flush()
        health.watch("serving", lambda: _serving(exchanges))
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # what failed ends the process with its error
        finally:
            models.should_exit = controls.should_exit = True
            await asyncio.gather(models_task, controls_task)
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


def _serving(exchanges: Mapping[str, SimulatedExchange]) -> tuple[bool, str]:
    clients = sum(len(exchange.connections) for exchange in list(exchanges.values()))
    return True, f"{len(exchanges)} exchanges, {clients} connections"


async def _all_played(replays: list[ReplayedExchange]) -> None:
    for replay in replays:
        await replay.played.wait()
