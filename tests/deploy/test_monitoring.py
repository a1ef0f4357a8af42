"""What is watched exists, means what the rules take it for, and is explained; every alert fires for its fault alone."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from services.decider.service import GROUP as DECIDER
from services.detector.service import GROUP as DETECTOR
from shared import metrics, topics
from shared.settings import load
from tests.deploy import promql
from tools import metric_table
from tools.dashboards import FOLDER, WIDTH, dashboards

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
PAGE = ROOT / "docs" / "monitoring.md"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
IMAGES = [
    COMPOSE["prometheus"]["image"].removeprefix("${PROMETHEUS_IMAGE:-").removesuffix("}"),
    "prom/prometheus:latest",
]
"""The one that runs, else any that is here."""

TARGET = {"job", "host", "instance"}
"""Labels that Prometheus gives every series: deploy/prometheus/prometheus.yml."""

BUILT_IN = {
    "up": set(),
    "process_start_time_seconds": set(),
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
    # What an alert carries depends on the alert: the labels that any of ours may have.
    "ALERTS": {"alertname", "alertstate", "severity", "exchange", "topic"},
}

KMINION = {  # as KMinion v2.3.5 exported them for a cluster of Kafka 4.3.1, with the settings in deploy/kminion
    "kminion_exporter_up": {"version"},
    "kminion_exporter_offset_consumer_records_consumed_total": set(),
    "kminion_kafka_broker_info": {"address", "broker_id", "is_controller", "port", "rack_id"},
    "kminion_kafka_broker_log_dir_size_total_bytes": {"address", "broker_id", "port", "rack_id"},
    "kminion_kafka_cluster_info": {"broker_count", "cluster_id", "cluster_version", "controller_id"},
    "kminion_kafka_consumer_group_info": {"coordinator_id", "group_id", "protocol", "protocol_type", "state"},
    "kminion_kafka_consumer_group_members": {"group_id"},
    "kminion_kafka_consumer_group_topic_assigned_partitions": {"group_id", "topic_name"},
    "kminion_kafka_consumer_group_topic_lag": {"group_id", "topic_name"},
    "kminion_kafka_consumer_group_topic_members": {"group_id", "topic_name"},
    "kminion_kafka_consumer_group_topic_offset_sum": {"group_id", "topic_name"},
    "kminion_kafka_topic_high_water_mark_sum": {"topic_name"},
    "kminion_kafka_topic_info": {"cleanup_policy", "partition_count", "replication_factor", "topic_name"},
    "kminion_kafka_topic_log_dir_size_total_bytes": {"topic_name"},
    "kminion_kafka_topic_low_water_mark_sum": {"topic_name"},
}


def exported() -> dict[str, set[str]]:
    """Every series that our services may serve, with its labels."""
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            family, labels = metric.describe()[0], set(metric._labelnames)
            match family.type:
                case "counter":
                    found[f"{family.name}_total"] = labels
                case "histogram":
                    found |= {f"{family.name}_bucket": labels | {"le"}}
                    found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
                case "gauge":
                    found[family.name] = labels
                case other:
                    raise AssertionError(f"{family.name}: what does a {other} export?")
    return found


def rules(kind: str) -> dict[str, dict]:
    return {
        rule[kind]: rule
        for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if kind in rule
    }


ALERTS = rules("alert")
RECORDED = rules("record")
DASHBOARDS = {path.name: orjson.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))}


def queries() -> list[tuple[str, str, str]]:
    """(where, expression, legend) of all rules and panels, choices of the dashboards included."""
    found = [(name, rule["expr"], "") for name, rule in (ALERTS | RECORDED).items()]
    for file, board in DASHBOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                found.append((f"{file}: {panel['title']}", target["expr"], target["legendFormat"]))
        found += [(f"{file}: {mark['name']}", mark["expr"], "") for mark in board["annotations"]["list"]]
        for choice in board["templating"]["list"]:
            if match := re.fullmatch(r"label_values\((.+), (\w+)\)", choice.get("definition", "")):
                found.append((f"{file}: ${choice['name']}", f"count by ({match[2]}) ({match[1]})", ""))
    return found


QUERIES = queries()


def known() -> dict[str, set[str]]:
    """Every metric that a query may name, and its labels."""
    found = {name: labels | TARGET for name, labels in (exported() | BUILT_IN | KMINION).items()}
    for name, rule in RECORDED.items():
        grouped = [group for group in promql.read(rule["expr"]).groupings if group.word == "by"]
        found[name] = set(grouped[0].labels) - {"le"}
    return found


KNOWN = known()


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(("where", "expression", "legend"), QUERIES, ids=[query[0] for query in QUERIES])
def test_every_query_asks_for_what_is_exported(where, expression, legend):
    asked = promql.read(expression)
    assert asked.metrics or "vector(" in expression
    for one in asked.metrics:
        assert one.metric in KNOWN, f"{one.metric} is exported by nobody"
        unknown = one.labels.keys() - KNOWN[one.metric]
        assert not unknown, f"{one.metric} has no label {unknown}"
    for grouping in asked.groupings:
        inside = [
            KNOWN[one.metric]
            for one in asked.metrics
            if grouping.over is None or grouping.over[0] <= one.place <= grouping.over[1]
        ]
        labels = set.union(*inside) if grouping.over is None else set.intersection(*inside)
        assert set(grouping.labels) <= labels, f"{grouping.word} {grouping.labels}"
    said = set(re.findall(r"{{(\w+)}}", legend))
    assert said <= set().union(*(KNOWN[one.metric] for one in asked.metrics)), f"legend {legend}"


def test_a_level_in_the_name_of_a_recorded_rule_is_its_label():
    for name in RECORDED:
        level, metric, operation = name.split(":")
        assert level in KNOWN[name], name
        source = {one.metric for one in promql.read(RECORDED[name]["expr"]).metrics}
        assert any(one.startswith(metric.removesuffix("_sent").removesuffix("_failed")) for one in source), name
        assert operation


def test_every_metric_is_looked_at():
    """By an alert or on a dashboard: a metric that nobody would ever see is a cost without a use."""
    asked = {one.metric for _, expression, _ in QUERIES for one in promql.read(expression).metrics}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    assert families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} == set()


def test_every_recorded_rule_is_used():
    asked = {one.metric for _, expression, _ in QUERIES for one in promql.read(expression).metrics}
    assert RECORDED.keys() - asked == set()


@pytest.mark.parametrize(
    ("expression", "metrics_with_labels", "groups"),
    [
        ("up", [("up", {})], []),
        ('a{b="c", d=~"e|f"} > 0', [("a", {"b": "c", "d": "e|f"})], []),
        ('rate(a{text="sum(b) by (x) # not"}[5m]) # b', [("a", {"text": "sum(b) by (x) # not"})], []),
        ("sum by (x, y) (rate(a[$__rate_interval]))", [("a", {})], [["x", "y"]]),
        ("a offset 3h and on (z) b unless c", [("a", {}), ("b", {}), ("c", {})], [["z"]]),
        ("a:b:c / (d > 0) * 1e3 - 86400 % 5", [("a:b:c", {}), ("d", {})], []),
        ("sum(by_name) or inf_value", [("by_name", {}), ("inf_value", {})], []),
        ("histogram_quantile(0.99, sum by (le) (rate(a_bucket[1h30m])))", [("a_bucket", {})], [["le"]]),
    ],
)
def test_expressions_are_read(expression, metrics_with_labels, groups):
    found = promql.read(expression)
    assert [(one.metric, one.labels) for one in found.metrics] == metrics_with_labels
    assert [grouping.labels for grouping in found.groupings] == groups


@pytest.mark.parametrize(
    "expression", ["no_function(a)", "sum(a) by (x)", "a{b", '{__name__="a"}', "a{b=c}", "a ? b", "sum"]
)
def test_what_cannot_be_read_is_an_error(expression):
    with pytest.raises(promql.Unknown):
        promql.read(expression)


# ---------------------------------------------------------------- alerts


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(name):
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"


def test_every_alert_has_its_section_and_the_reverse():
    page = PAGE.read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    explained = dict(section.split("\n", 1) for section in sections)
    assert len(explained) == len(sections)
    assert explained.keys() == ALERTS.keys()
    for name, text in explained.items():
        for word in ("**Means**", "**Look**", "**Do**"):
            assert word in text, f"{name} has no {word}"
        assert text.startswith(f"*{ALERTS[name]['labels']['severity']}, "), name


def expected() -> dict[str, list[set[str]]]:
    """Alert -> labels of each firing that the rules' tests expect."""
    found: dict[str, list[set[str]]] = {}
    for path in sorted((PROMETHEUS / "tests").glob("*.yml")):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["promql_expr_test"]:
                for sample in check["exp_samples"]:
                    labels = promql.read(sample["labels"]).metrics[0].labels
                    found.setdefault(labels["alertname"], []).append(set(labels) - {"alertname", "alertstate"})
    return found


def test_every_alert_is_seen_firing_with_the_labels_that_its_text_names():
    fired = expected()
    assert fired.keys() == ALERTS.keys()
    for name, alert in ALERTS.items():
        named = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        for labels in fired[name]:
            assert named <= labels, f"{name}: {named - labels}"


def _promtool(*words: str, folder: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    """promtool with `words`, in `folder`: this machine's, or that of a local image. Skips without both."""
    if shutil.which("promtool"):
        command = ["promtool", *words]
    else:
        docker = shutil.which("docker")
        here = [
            image
            for image in IMAGES
            if docker and subprocess.run([docker, "image", "inspect", image], capture_output=True).returncode == 0
        ]
        if docker is None or not here:
            pytest.skip(f"no promtool (Debian: prometheus), and no Docker with the image {' or '.join(IMAGES)}")
        mounts = ["--network=none", "--volume", f"{folder}:/rules:ro", "--workdir=/rules", "--user", str(os.getuid())]
        command = [docker, "run", "--rm", *mounts, "--entrypoint=promtool", here[0], *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_rules_and_settings_are_valid():
    names = [f"rules/{path.name}" for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    for words in (["check", "config", "prometheus.yml"], ["check", "rules", *names]):
        done = _promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", sorted((PROMETHEUS / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_each_alert_fires_for_its_fault_alone(path):
    done = _promtool("test", "rules", f"tests/{path.name}")
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- what the rules take for granted


def scraped() -> dict[str, dict]:
    return {
        job["job_name"]: job for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    }


def test_every_service_is_scraped_by_its_name():
    jobs = scraped()
    assert jobs.keys() == {"collector", "detector", "decider", "simulator", "kminion", "prometheus"}
    found = {
        job: (at["dns_sd_configs"][0]["names"], at["dns_sd_configs"][0]["port"])
        for job, at in jobs.items()
        if job != "prometheus"
    }
    assert found.pop("collector") == ([f"collector-{name}" for name in topics.EXCHANGES], 9100)
    assert found == {
        **{name: ([name], 9100) for name in ("detector", "decider", "simulator")},
        "kminion": (["kminion"], 8080),
    }


def test_numbers_and_names_in_rules_are_those_of_the_code():
    owned = ALERTS["PartitionsUnowned"]["expr"]
    assert f"< {topics.TICK_PARTITIONS}\n" in owned
    assert f"< {topics.EVENT_PARTITIONS}" in owned
    assert f'topic="{topics.OPPORTUNITIES}"' in owned
    assert f'group_id="{DECIDER}"' in ALERTS["DeciderGroupBehind"]["expr"]
    assert float(load(ROOT / "deploy" / "arb.toml").decider.max_opportunity_usd) == 0.02
    for name in ("BudgetSpent", "BudgetRunsOut"):
        assert "0.02" in ALERTS[name]["expr"]


def test_kminion_watches_our_groups_and_topics():
    watched = yaml.safe_load((ROOT / "deploy" / "kminion" / "config.yaml").read_text())["minion"]
    assert watched["consumerGroups"]["allowedGroups"] == [DETECTOR, DECIDER]
    allowed = [
        f"({word[1:-1]})" if word.startswith("/") else f"({re.escape(word)})"
        for word in watched["topics"]["allowedTopics"]
    ]
    for topic in topics.TOPICS:
        assert re.fullmatch("|".join(allowed), topic.name), topic.name


# ---------------------------------------------------------------- dashboards and the page


def test_dashboards_are_what_the_tool_makes():
    made = dashboards()
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == made, "run: python tools/dashboards.py"


@pytest.mark.parametrize("file", DASHBOARDS)
def test_a_dashboard_can_be_shown(file):
    board = DASHBOARDS[file]
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= WIDTH, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["expr"].strip()
            assert target["datasource"]["uid"] == "${datasource}"
    choices = {choice["name"] for choice in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", orjson.dumps(board).decode())) - {"__rate_interval", "__range", "__all"}
    assert used == choices, "a choice that is not there, or that nothing follows"


def test_dashboards_are_found_by_their_own_addresses():
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert len({board["title"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert {board["templating"]["list"][0]["current"]["value"] for board in DASHBOARDS.values()} == {source["uid"]}


def test_queries_of_dashboards_are_promql(tmp_path):
    """As rules, with the variables filled in: promtool knows the language."""
    filled = {"$__rate_interval": "1m", "$__range": "1h", "$exchange": ".*", "$instance": ".*", "$provider": ".*"}
    found = []
    for _, expression, _ in QUERIES:
        for name, value in filled.items():
            expression = expression.replace(name, value)
        found.append({"record": f"query:number:{len(found)}", "expr": expression})
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": found}]}))
    done = _promtool("check", "rules", "--lint=none", "queries.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_every_metric():
    page = PAGE.read_text()
    found = page.split(metric_table.BEGIN)[1].split(metric_table.END)[0]
    assert found == metric_table.table(), "run: python tools/metric_table.py"
    listed = {row[0] for rows in metric_table.exported().values() for row in rows}
    assert listed == {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
