"""Wiring of the simulator: sources, ports, and the one line that says where they are."""

import asyncio
import contextlib
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from services.simulator import capture
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
from shared.settings import Settings

PATHS = {"kraken": "/v2"}

CONTROL_HOST = "127.0.0.1"
"""Whoever reaches the control endpoint can break things: it is never offered beyond this machine."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to simulate; see `arb simulate --help`.

    Attributes:
        ports: By exchange, "models" or "control"; absent or 0: any free one.
    """

    seed: int = 1
    capture: tuple[Path, ...] = ()
    speed: float = 1.0
    loop: bool = False
    rate: float = 5.0
    truth: Path | None = None
    model_faults: float = 0.04
    faults: Path | None = None
    host: str = "127.0.0.1"
    ports: dict[str, int] = field(default_factory=dict)


def main(settings: Settings, options: Options) -> None:
    """Serve until SIGTERM or SIGINT, or until captures played once have been played.

    Raises:
        InputError: a capture or the faults file cannot be read, or a fault names what is not simulated.
        SettingsError: options that do not fit together.
    """
    recordings = [capture.load(path) for path in options.capture]
    names = [recording.exchange for recording in recordings]
    if len(set(names)) != len(names):
        raise SettingsError(f"two captures of one exchange ({', '.join(names)}): one port can replay only one")
    known = {*(names or SERVERS), "models", "control"}
    for name in options.ports:
        if name not in known:
            raise SettingsError(f"--port {name}: nothing of that name is served; there are {', '.join(sorted(known))}")
    planned = [] if options.faults is None else read_faults(options.faults)
    process.run_async(lambda stop: _run(settings, options, recordings, planned, stop))


async def _run(
    settings: Settings,
    options: Options,
    recordings: list[capture.Recording],
    planned: list[Fault],
    stop: asyncio.Event,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        faults = Faults(random.Random(options.seed))
        exchanges: dict[str, SimulatedExchange] = {}
        seconds: dict[str, str] = {}
        if recordings:
            replays = [ReplayedExchange(recording, options.speed, options.loop, faults) for recording in recordings]
            exchanges.update({replay.name: replay for replay in replays})
            source = _all_played(replays)
        else:
            simulation = Simulation(settings, options.seed, options.rate, options.truth, time.time_ns, faults)
            stack.callback(simulation.close)
            exchanges.update(simulation.exchanges)
            seconds = simulation.seconds
            source = simulation.run()
        control = FaultControl(faults, exchanges)
        faults.add(planned, time.monotonic_ns(), str(options.faults))
        addresses: dict[str, dict[str, Any]] = {}
        for name, exchange in exchanges.items():
            server, addresses[name] = await listen(
                exchange, options.host, options.ports.get(name, 0), PATHS.get(name, "")
            )
            await stack.enter_async_context(server)
        for name, second in seconds.items():
            addresses[name]["second"] = addresses.pop(second)
        ends: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait()), asyncio.create_task(source)]
        ends.append(asyncio.create_task(control.run()))
        endpoint = ModelEndpoint(options.seed, options.model_faults)
        base_url, models, models_task = await serve_models(endpoint, options.host, options.ports.get("models", 0))
        control_url, controls, controls_task = await serve_app(
            control.app, CONTROL_HOST, options.ports.get("control", 0)
        )
        ends += [models_task, controls_task]
        ready = {"exchanges": addresses, "model_base_url": base_url, "control_url": control_url}
        sys.stdout.write(orjson.dumps(ready).decode() + "\n")
        sys.stdout.flush()
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


async def _all_played(replays: list[ReplayedExchange]) -> None:
    for replay in replays:
        await replay.played.wait()
