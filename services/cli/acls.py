"""`arb topics acls`: the rules of access as commands, compared with a cluster, and created there."""

import orjson
from rich.console import Console

from shared import acls, cluster
from shared.acls import Rule
from shared.settings import KafkaSettings

stdout = Console(soft_wrap=True, highlight=False, markup=False)


def run(settings: KafkaSettings, *, ask: bool, apply: bool, as_json: bool) -> int:
    """Print the table, or what differs from it; the exit code.

    Raises:
        BrokerUnavailable, AccessRefused, UsageError: see `cluster.check_rules`, `cluster.create_rules`.
    """
    if not ask:
        if as_json:
            _json([rule._asdict() for rule in acls.rules()])
        else:
            for command in acls.commands(settings.servers):
                stdout.print(command)
        return 0
    missing, beyond = cluster.check_rules(settings)
    created: list[Rule] = []
    if apply and missing:
        cluster.create_rules(settings, missing)
        created, missing = missing, []
    if as_json:
        lists = {"created": created, "missing": missing}
        _json({name: [rule._asdict() for rule in found] for name, found in lists.items()} | {"beyond": beyond})
    else:
        for rule in created:
            stdout.print(f"created: {rule}")
        for rule in missing:
            stdout.print(f"missing: {rule}: `arb topics acls --apply` creates it")
        if len(missing) == len(list(acls.rules())):
            stdout.print("no rule at all is there: is authorizer.class.name set on the brokers? (docs/security.md)")
        for line in beyond:
            stdout.print(f"beyond the table: {line}: remove it with kafka-acls.sh --remove, or give another user that")
        if not (created or missing or beyond):
            stdout.print("all rules are as they must be")
    return 1 if missing or beyond else 0


def _json(value: object) -> None:
    print(orjson.dumps(value).decode())  # noqa: T201
