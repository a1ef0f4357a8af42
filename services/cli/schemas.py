"""Writes `docs/schemas/*.json` and `docs/asyncapi.json` from `shared/messages.py` and `shared/topics.py`.

Run by `make schemas`; a test compares what is committed with what this would write.
"""

from pathlib import Path
from typing import Any

import orjson

from shared.messages import MODELS
from shared.topics import AUDIT, DECISIONS, FX_RATES, OPPORTUNITIES, OUTCOMES, REJECTIONS, TOPICS, Topic

DOCS = Path(__file__).parents[2] / "docs"

_CARRIES = {
    OPPORTUNITIES: ("opportunity",),
    REJECTIONS: ("rejection",),
    OUTCOMES: ("outcome",),
    DECISIONS: ("decision",),
    AUDIT: ("audit", "shadow"),
    FX_RATES: ("rate",),
}


def documents() -> dict[str, bytes]:
    """File names under `docs/` and what must be in them."""
    files = {
        f"schemas/{kind}.json": _json({"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema(kind)})
        for kind in MODELS
    }
    return {**files, "asyncapi.json": _json(_asyncapi())}


def _schema(kind: str) -> dict[str, Any]:
    return MODELS[kind].model_json_schema(mode="serialization")


def _json(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _kinds(topic: Topic) -> tuple[str, ...]:
    return ("book", "trade", "health") if topic.name.startswith("tick-data-") else _CARRIES.get(topic.name, ())


def _asyncapi() -> dict[str, Any]:
    """Topics that carry a message today, with key, partitions and settings."""
    described = [topic for topic in TOPICS if _kinds(topic)]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Arbiter",
            "version": "1.0.0",
            "description": "What crosses Kafka: ticks in, opportunities and rejections, decisions out.",
        },
        "defaultContentType": "application/json",
        "channels": {
            topic.name: {
                "address": topic.name,
                "description": f"Written by {topic.written_by}; read by {topic.read_by}. Key: {topic.key}.",
                "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in _kinds(topic)},
                "bindings": {
                    "kafka": {
                        "topic": topic.name,
                        "partitions": topic.partitions,
                        "replicas": topic.replication(3),
                        "topicConfiguration": {
                            "cleanup.policy": ["delete"],
                            "retention.ms": topic.retention_ms,
                        },
                        "bindingVersion": "0.5.0",
                    }
                },
            }
            for topic in described
        },
        "operations": {
            f"publish-{topic.name}": {"action": "send", "channel": {"$ref": f"#/channels/{topic.name}"}}
            for topic in described
        },
        "components": {
            "messages": {
                kind: {"name": kind, "title": kind, "payload": {"$ref": f"./schemas/{kind}.json"}} for kind in MODELS
            }
        },
    }


def main() -> None:
    """Write all documents."""
    for name, content in documents().items():
        file = DOCS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


if __name__ == "__main__":
    main()
