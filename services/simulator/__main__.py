"""Wiring of the simulator: sources, ports, and the one line that says where they are."""

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from services.simulator import capture
from services.simulator.exchanges import SERVERS
from services.simulator.model import ModelEndpoint
from services.simulator.service import ReplayedExchange, Simulation, listen, serve_models
from shared import process
from shared.errors import SettingsError
from shared.settings import Settings

PATHS = {"kraken": "/v2"}


@dataclass(frozen=True, slots=True)
class Options:
    """What to simulate; see `arb simulate --help`. `ports` by exchange or "models"; absent or 0: any free one."""

    seed: int = 1
    capture: tuple[Path, ...] = ()
    speed: float = 1.0
    loop: bool = False
    rate: float = 5.0
    truth: Path | None = None
    model_faults: float = 0.04
    host: str = "127.0.0.1"
    ports: dict[str, int] = field(default_factory=dict)


def main(settings: Settings, options: Options) -> None:
    """Serve until SIGTERM or SIGINT, or until captures played once have been played.

    Raises:
        InputError: a capture cannot be read.
        SettingsError: options that do not fit together.
    """
    recordings = [capture.load(path) for path in options.capture]
    names = [recording.exchange for recording in recordings]
    if len(set(names)) != len(names):
        raise SettingsError(f"two captures of one exchange ({', '.join(names)}): one port can replay only one")
    known = {*(names or SERVERS), "models"}
    for name in options.ports:
        if name not in known:
            raise SettingsError(f"--port {name}: nothing of that name is served; there are {', '.join(sorted(known))}")
    process.run_async(lambda stop: _run(settings, options, recordings, stop))


async def _run(settings: Settings, options: Options, recordings: list[capture.Recording], stop: asyncio.Event) -> None:
    async with contextlib.AsyncExitStack() as stack:
        addresses: dict[str, dict[str, str]] = {}
        ends: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
        if recordings:
            replays = {r.exchange: ReplayedExchange(r, options.speed, options.loop) for r in recordings}
            for name, replay in replays.items():
                server, addresses[name] = await listen(
                    replay, options.host, options.ports.get(name, 0), PATHS.get(name, "")
                )
                await stack.enter_async_context(server)
            ends.append(asyncio.create_task(_all_played(list(replays.values()))))
        else:
            simulation = Simulation(settings, options.seed, options.rate, options.truth, time.time_ns)
            stack.callback(simulation.close)
            for name, exchange in simulation.exchanges.items():
                server, addresses[name] = await listen(
                    exchange, options.host, options.ports.get(name, 0), PATHS.get(name, "")
                )
                await stack.enter_async_context(server)
            ends.append(asyncio.create_task(simulation.run()))
        endpoint = ModelEndpoint(options.seed, options.model_faults)
        base_url, models, models_task = await serve_models(endpoint, options.host, options.ports.get("models", 0))
        ends.append(models_task)
        sys.stdout.write(orjson.dumps({"exchanges": addresses, "model_base_url": base_url}).decode() + "\n")
        sys.stdout.flush()
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # what failed ends the process with its error
        finally:
            models.should_exit = True
            await models_task
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


async def _all_played(replays: list[ReplayedExchange]) -> None:
    for replay in replays:
        await replay.played.wait()
