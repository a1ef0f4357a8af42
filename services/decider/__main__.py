"""Wiring of the decider: settings, models, money, consumer, publisher, run."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from decimal import Decimal

import structlog

from services.decider import budget as money
from services.decider import models as model_data
from services.decider.budget import Budget
from services.decider.decide import Decider, Newest
from services.decider.guards import Guards
from services.decider.judge import Terms
from services.decider.models import Models
from services.decider.role import Desk
from services.decider.service import GROUP, TAIL_MS, TAIL_S, Service
from services.decider.state import State, state_file
from services.decider.trials import Trials
from services.decider.upkeep import Upkeep, weigh
from shared import cluster, kafka, process, topics
from shared.health import Health
from shared.kafka.watch import Pulse
from shared.settings import ModelSettings, RoleSettings, Settings

log = structlog.get_logger()

WRITTEN = (topics.DECISIONS, topics.AUDIT, topics.dlq(topics.OPPORTUNITIES))


def health() -> Health:
    """What a decider says of itself."""
    return Health("decider", ("kafka", "assignment", "tail", "state", "decisions"))


def main(settings: Settings, health: Health) -> None:
    """Decide until SIGTERM or SIGINT.

    Raises:
        SettingsError: a model's last day has passed, or a prompt, key, state or weights file cannot be used: exit 2.
        BrokerUnavailable: exit 3. TopicMismatch: a topic is missing: exit 2.
    """
    for warning in model_data.check_dates(settings, datetime.now(UTC).date()):
        log.warning("model ends soon", words=warning)
    process.look_for_garbage_seldom()
    terms, weights = Upkeep.read(settings)
    models = Models(settings)
    state = State(state_file(settings))
    try:
        cluster.require_topics(settings.kafka, [topics.OPPORTUNITIES, *WRITTEN])
        trials = Trials(settings, state.rolled_back(), state.roll_back)
        desk = Desk(settings, models, Guards(settings), Budget(settings, state), trials)
        weigh(desk, weights)
        publisher = kafka.Publisher(kafka.event_producer(settings.kafka, "decider"), drop_when_full=False)
        try:
            health.watch("state", state.usable)
            with Pulse(publisher.brokers, publisher.trouble) as pulse:
                health.watch("kafka", pulse.look)
                process.run_async(lambda stop: _run(terms, desk, state, publisher, health, stop))
        finally:
            publisher.close(2.0)
    finally:
        state.close()


async def _run(
    terms: Terms, desk: Desk, state: State, publisher: kafka.Publisher, health: Health, stop: asyncio.Event
) -> None:
    settings, models = desk.settings, desk.models
    if not models.any():
        log.warning("no provider has a key: decisions rest on rules only", set_one_of=", ".join(models.missing()))
    elif mute := sorted(role for role, chosen in settings.roles.items() if not _speaks(chosen, models)):
        log.warning("roles without a key abstain", roles=mute, set=", ".join(models.missing()), risk=_NO_RISK)
    playing = {role: f"{chosen.model} at {chosen.provider}" for role, chosen in settings.roles.items()}
    log.info("panel", version=terms.version, **playing)
    newest = Newest()
    decider = Decider(terms, desk, newest)
    service = Service(decider, newest, publisher)
    config = kafka.event_consumer(settings.kafka, "decider", GROUP)
    health.watch("assignment", kafka.statistics_of(config).assignment)
    health.watch("tail", service.tail_read)
    health.watch("decisions", service.deciding)
    consumer = kafka.ConsumerThread(
        config,
        [topics.OPPORTUNITIES],
        high_water=1000,
        auto_release=False,
        on_assigned=lambda partitions: service.on_assigned(
            partitions,
            lambda: kafka.read_range(
                kafka.reader(settings.kafka, "decider"),
                [topics.DECISIONS],
                int(time.time() * 1000) - TAIL_MS,
                TAIL_S,
            ),
        ),
        on_revoked=service.on_revoked,
        on_lost=service.on_lost,
    )
    beside = [
        asyncio.create_task(_warm(terms, desk, decider)),
        asyncio.create_task(models.keep_warm()),
        asyncio.create_task(Upkeep(decider, desk, state).run()),
    ]
    try:
        async with health.beating(service.show):
            await service.run(consumer, stop)
    finally:
        for task in beside:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*beside, return_exceptions=True)
        await models.close()


_NO_RISK = "without the risk role nothing is executed"


def _speaks(role: RoleSettings, models: Models) -> bool:
    return models.has(role.provider) or (role.fallback is not None and models.has(role.fallback.provider))


async def _warm(terms: Terms, desk: Desk, decider: Decider) -> None:
    """Try every model once, beside the first decisions: a wrong name or key shows now, not at the first gap."""

    if decider.killed():
        return

    def reserve(provider: str, model: ModelSettings, text: str) -> bool:
        now_ns = desk.clock()
        amount = money.worst_case(model, text, datetime.fromtimestamp(now_ns / 1e9, UTC).date())
        return desk.budget.reserve(provider, amount, Decimal(0), now_ns) is not None

    prompts: dict[str, str] = {role: found.text for role, found in terms.prompts.items()}
    for words in await desk.models.warm(prompts, reserve):
        log.warning("model check", words=words)
