"""The one table of who may do what on Kafka: every service its own user, and each only what its work needs.

`arb topics acls` prints it as commands, compares it with a cluster and creates what is missing; the Helm chart and
`docs/security.md` are held against it. It is meant for brokers that deny what no rule allows (the default of
`StandardAuthorizer`). Kafka lets who may Read, Write, Alter or Delete also Describe, so Describe stands alone only
where nothing more is needed. Since Kafka 2.8 an idempotent producer needs no rule of its own: Write on a topic will do.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shared import topics

Resource = Literal["topic", "group", "cluster"]
Pattern = Literal["literal", "prefixed"]
Operation = Literal["Read", "Write", "Create", "Delete", "AlterConfigs", "Describe", "DescribeConfigs"]

CLUSTER = "kafka-cluster"
"""Kafka's own name of its one cluster resource."""

ANY = "*"


@dataclass(frozen=True, slots=True)
class Allow:
    """Operations on one resource, or on all whose names begin with `name` (`prefixed`); `*` is every name."""

    resource: Resource
    name: str
    operations: tuple[Operation, ...]
    pattern: Pattern = "literal"


@dataclass(frozen=True, slots=True)
class Principal:
    """A user of Kafka: `name` is the SCRAM user name (`User:NAME` in Kafka's rules), `used_by` who logs in as it."""

    name: str
    used_by: str
    allows: tuple[Allow, ...]


class Rule(NamedTuple):
    """One rule as Kafka keeps it: one operation on one resource pattern for one user, from any host."""

    principal: str
    resource: Resource
    name: str
    pattern: Pattern
    operation: Operation

    def __str__(self) -> str:
        prefix = " (prefix)" if self.pattern == "prefixed" else ""
        return f"User:{self.principal} allow {self.operation.lower()} on {self.resource} {self.name}{prefix}"


EVENTS = (topics.OPPORTUNITIES, topics.REJECTIONS, topics.OUTCOMES)
TICKS = (*topics.tick_topics(), topics.FX_RATES)
READABLE = (*TICKS, *EVENTS, topics.DECISIONS, topics.AUDIT)

READERS = ("client", "watch", "report", "explain", "decisions", "scorecard", "replay", "demo")
"""Names under which programs read without a group: as `NAME-` and a random part, under which nothing is committed."""


def _topics(names: Iterable[str], *operations: Operation) -> tuple[Allow, ...]:
    return tuple(Allow("topic", name, operations) for name in names)


def _groups(names: Iterable[str], operation: Operation) -> tuple[Allow, ...]:
    """All groups that begin with one of these names and a hyphen."""
    return tuple(Allow("group", f"{name}-", (operation,), "prefixed") for name in names)


_DEAD = tuple(topic.name for topic in topics.TOPICS if topic.name.endswith(".dlq"))
_SENT_AGAIN = tuple(topic.name for topic in topics.TOPICS if topics.dlq(topic.name) in _DEAD)

PRINCIPALS: tuple[Principal, ...] = (
    *(
        Principal(f"collector-{name}", f"`arb collect {name}`", _topics((topics.ticks(name), topics.FX_RATES), "Write"))
        for name in topics.EXCHANGES
    ),
    Principal(
        "detector",
        "`arb detect`",
        (
            *_topics(TICKS, "Read"),
            *_topics((topics.OPPORTUNITIES, topics.OUTCOMES), "Read", "Write"),  # what is open is adopted at the start
            *_topics((topics.REJECTIONS, topics.TICKS_DLQ, topics.dlq(topics.FX_RATES)), "Write"),
            Allow("group", "detector", ("Read",)),
            *_groups(("detector",), "Describe"),
        ),
    ),
    Principal(
        "decider",
        "`arb decide`",
        (
            *_topics((topics.OPPORTUNITIES,), "Read"),
            *_topics((topics.DECISIONS,), "Read", "Write"),  # what was decided lately is not paid for again
            *_topics((topics.AUDIT, topics.dlq(topics.OPPORTUNITIES)), "Write"),
            Allow("group", "decider", ("Read",)),
            *_groups(("decider",), "Describe"),
        ),
    ),
    Principal(
        "reader",
        "users' programs, `arb watch`, `report`, `explain`, `decisions`, `replay decisions`, `scorecard`",
        (*_topics(READABLE, "Read"), *_groups(("client",), "Read"), *_groups(READERS[1:], "Describe")),
    ),
    Principal(
        "replay",
        "`arb detect --since ... --publish --group replay-...`",
        (
            *_topics(TICKS, "Read"),
            *_topics(EVENTS, "Write"),
            *_groups(("replay",), "Read"),
        ),
    ),
    Principal(
        "operator",
        "`arb topics apply`, `topics check`, `topics acls`, `doctor`, `dlq list`, `dlq show`",
        (
            *_topics(
                (topic.name for topic in topics.TOPICS), "Read", "Create", "Delete", "AlterConfigs", "DescribeConfigs"
            ),
            Allow("group", ANY, ("Describe",)),
            Allow("cluster", CLUSTER, ("Describe", "DescribeConfigs")),
        ),
    ),
    Principal(
        "dlq",
        "`arb dlq replay`",
        (
            *_topics(_DEAD, "Read", "Write"),  # letters, and the markers that say what became of them
            *_topics(_SENT_AGAIN, "Write"),
            *_groups(("dlq",), "Describe"),
        ),
    ),
    Principal(
        "kminion",
        "the lag exporter",
        (
            *_topics((ANY,), "Describe", "DescribeConfigs"),
            Allow("group", ANY, ("Describe",)),
            Allow("cluster", CLUSTER, ("Describe", "DescribeConfigs")),
        ),
    ),
)


def rules(principals: Iterable[Principal] = PRINCIPALS) -> Iterator[Rule]:
    """The table as Kafka keeps it, a rule for each operation."""
    for principal in principals:
        for allow in principal.allows:
            for operation in allow.operations:
                yield Rule(principal.name, allow.resource, allow.name, allow.pattern, operation)


def commands(servers: str, principals: Iterable[Principal] = PRINCIPALS) -> Iterator[str]:
    """The table as calls of Kafka's own command, one for each resource of each user; quoted for a shell."""
    for principal in principals:
        for allow in principal.allows:
            operations = " ".join(f"--operation {operation}" for operation in allow.operations)
            resource = "--cluster" if allow.resource == "cluster" else f"--{allow.resource} '{allow.name}'"
            pattern = " --resource-pattern-type prefixed" if allow.pattern == "prefixed" else ""
            yield (
                f"kafka-acls.sh --bootstrap-server {servers} --command-config admin.properties --add "
                f"--allow-principal User:{principal.name} {operations} {resource}{pattern}"
            )
