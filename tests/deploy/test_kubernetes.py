"""The chart and the Kafka resources: made of the code's tables, safe by themselves, accepted by the field's own tools.

What needs helm or kubeconform runs where they are on the PATH or in the cache: `python -m tools.kubernetes check`.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from services.cli.__main__ import app
from services.decider.service import GROUP
from shared import settings, topics
from shared.acls import PRINCIPALS
from tools import kubernetes

Object = dict[str, Any]
WORK = ("Deployment", "StatefulSet")


def values() -> Object:
    loaded: Object = yaml.safe_load((kubernetes.CHART / "values.yaml").read_text())
    return loaded


def kafka_resources() -> list[Object]:
    return list(yaml.safe_load_all((kubernetes.RESOURCES / "kafka.yaml").read_text()))


# ---------------------------------------------------------------- always


@pytest.mark.parametrize("file", sorted(kubernetes.generated()), ids=lambda file: file.name)
def test_generated_resources_are_those_of_the_tables(file: Path) -> None:
    assert file.read_text() == kubernetes.generated()[file], "python -m tools.kubernetes write"


def test_every_topic_and_user_is_a_resource_of_the_cluster() -> None:
    texts = [text for file, text in kubernetes.generated().items() if file.parent == kubernetes.RESOURCES]
    made = [found for text in texts for found in yaml.safe_load_all(text)]
    names = {
        kind: [one["metadata"]["name"] for one in made if one["kind"] == kind] for kind in ("KafkaTopic", "KafkaUser")
    }
    assert names["KafkaTopic"] == [topic.name for topic in topics.TOPICS]
    assert names["KafkaUser"] == [principal.name for principal in PRINCIPALS]
    (cluster,) = (one["metadata"]["name"] for one in kafka_resources() if one["kind"] == "Kafka")
    pools = [one for one in kafka_resources() if one["kind"] == "KafkaNodePool"]
    assert {one["metadata"]["labels"]["strimzi.io/cluster"] for one in [*made, *pools]} == {cluster}


def test_a_prefixed_rule_is_one_for_strimzi_too() -> None:
    users = {
        one["metadata"]["name"]: one for one in yaml.safe_load_all((kubernetes.RESOURCES / "users.yaml").read_text())
    }
    acls = users["reader"]["spec"]["authorization"]["acls"]
    assert {"type": "group", "name": "client-", "patternType": "prefix"} in [acl["resource"] for acl in acls]
    clusters = [
        acl for acl in users["operator"]["spec"]["authorization"]["acls"] if acl["resource"]["type"] == "cluster"
    ]
    assert [acl["resource"] for acl in clusters] == [{"type": "cluster"}]


def test_kafka_survives_one_node_and_lets_nobody_in_unknown() -> None:
    (kafka,) = (one["spec"]["kafka"] for one in kafka_resources() if one["kind"] == "Kafka")
    pools = {one["spec"]["roles"][0]: one["spec"] for one in kafka_resources() if one["kind"] == "KafkaNodePool"}
    assert {role: pool["replicas"] for role, pool in pools.items()} == {"controller": 3, "broker": kubernetes.BROKERS}
    for pool in pools.values():
        assert all(
            disk["type"] == "persistent-claim" and not disk["deleteClaim"] for disk in pool["storage"]["volumes"]
        )
    config = kafka["config"]
    assert config["auto.create.topics.enable"] is False
    assert config["default.replication.factor"] == config["offsets.topic.replication.factor"] == 3
    assert kafka["authorization"] == {"type": "simple"}
    assert all(listener["tls"] and listener["authentication"] for listener in kafka["listeners"])


def test_the_chart_speaks_of_what_the_code_has() -> None:
    chart = values()
    assert set(chart["collectors"]) == set(topics.EXCHANGES)
    assert chart["decider"]["keda"]["maxReplicas"] <= topics.EVENT_PARTITIONS
    assert chart["detector"]["autoscaling"]["maxReplicas"] <= topics.TICK_PARTITIONS
    schema = json.loads((kubernetes.CHART / "values.schema.json").read_text())["properties"]
    assert schema["decider"]["properties"]["keda"]["properties"]["maxReplicas"]["maximum"] == topics.EVENT_PARTITIONS
    assert schema["detector"]["properties"]["replicas"]["maximum"] == topics.TICK_PARTITIONS
    assert set(schema["collectors"]["properties"]) == set(topics.EXCHANGES)
    users = set(schema["kafka"]["properties"]["auth"]["properties"]["users"]["properties"])
    assert users <= {principal.name for principal in PRINCIPALS}


def test_the_chart_and_strimzi_mean_the_same_secrets_and_addresses() -> None:
    (kafka,) = (one for one in kafka_resources() if one["kind"] == "Kafka")
    chart = values()["kafka"]
    assert kafka["spec"]["entityOperator"]["userOperator"]["secretPrefix"] == chart["auth"]["secretPrefix"]
    (listener,) = kafka["spec"]["kafka"]["listeners"]
    name = kafka["metadata"]["name"]
    assert chart["servers"] == f"{name}-kafka-bootstrap:{listener['port']}"
    assert chart["tls"]["caSecret"] == f"{name}-cluster-ca-cert"
    assert chart["auth"]["mechanism"] == listener["authentication"]["type"].upper()
    assert values()["networkPolicy"]["kafka"]["ports"] == [listener["port"]]


@pytest.fixture
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("ARB_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_no_variables")
def test_limits_and_ports_are_those_of_the_default_settings() -> None:
    chart, configured = values(), settings.load()
    limits = chart["decider"]["limits"]
    assert Decimal(limits["max_day_usd"]) == configured.decider.max_day_usd
    assert Decimal(limits["max_minute_usd"]) == configured.decider.max_minute_usd
    assert Decimal(limits["shadow_max_day_usd"]) == configured.guards.shadow_max_day_usd
    assert chart["decider"]["keda"]["lagThreshold"] == configured.decider.max_panels_in_flight
    assert set(limits["providers"]) == set(configured.providers)
    for name, provider in configured.providers.items():
        for key, value in limits["providers"][name].items():
            assert Decimal(str(value)) == Decimal(str(getattr(provider, key))), f"{name}.{key}"
    for name, exchange in configured.exchanges.items():
        urls = [exchange.ws_url, exchange.rest_url]
        if exchange.second is not None:
            urls += [exchange.second.ws_url, exchange.second.rest_url]
        assert {urlsplit(url).port or 443 for url in urls} == set(chart["collectors"][name]["ports"]), name


# ---------------------------------------------------------------- with helm


@pytest.fixture(scope="module")
def helm() -> Path:
    found = kubernetes.found("helm")
    if found is None:
        pytest.skip("helm is neither on the PATH nor in the cache: python -m tools.kubernetes check")
    return found


@pytest.fixture(scope="module")
def rendered(helm: Path) -> Callable[[str], list[Object]]:
    """The objects of a variant of the chart."""
    kept: dict[str, list[Object]] = {}

    def objects(variant: str) -> list[Object]:
        if variant not in kept:
            text = kubernetes.render(helm, kubernetes.VARIANTS[variant])
            kept[variant] = [one for one in yaml.safe_load_all(text) if one]
        return kept[variant]

    return objects


every_variant = pytest.mark.parametrize("variant", kubernetes.VARIANTS)


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def by_component(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for one in of_kind(objects, *WORK):
        yield one["metadata"]["labels"]["app.kubernetes.io/component"], one["spec"]["template"]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """As the API server reads a label selector."""
    for rule in selector.get("matchExpressions", []):
        inside = labels.get(rule["key"]) in rule["values"]
        if inside != {"In": True, "NotIn": False}[rule["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@every_variant
def test_every_pod_is_locked_down(rendered: Callable[[str], list[Object]], variant: str) -> None:
    pods = list(kubernetes.pods_of(rendered(variant)))
    assert pods
    for pod in pods:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.get("hostNetwork")
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["image"].rpartition(":")[2] not in ("latest", container["image"])


@every_variant
def test_every_service_is_probed_and_given_time_to_end(rendered: Callable[[str], list[Object]], variant: str) -> None:
    for _, pod in by_component(rendered(variant)):
        assert pod["spec"]["terminationGracePeriodSeconds"] > 10
        (container,) = pod["spec"]["containers"]
        assert {"name": "metrics", "containerPort": 9100} in container["ports"]
        paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
        assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
        names = [variable["name"] for variable in container["env"]]
        assert len(names) == len(set(names))


@every_variant
def test_every_container_runs_a_command_that_there_is(rendered: Callable[[str], list[Object]], variant: str) -> None:
    for pod in kubernetes.pods_of(rendered(variant)):
        (container,) = pod["spec"]["containers"]
        command, arguments = get_command(app), list(container["args"])
        while isinstance(command, TyperGroup):
            context = command.make_context("arb", arguments)
            _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context("arb", arguments)  # raises what a wrong option or value would


@every_variant
def test_one_collector_for_each_exchange_or_shard(rendered: Callable[[str], list[Object]], variant: str) -> None:
    chosen = kubernetes.VARIANTS[variant].get("collectors", {})
    expected = set()
    for name in topics.EXCHANGES:
        shards = chosen.get(name, {}).get("shards", 1)
        if chosen.get(name, {}).get("enabled", True):
            parts = [("--shard", f"{index}/{shards}") for index in range(1, shards + 1)]
            expected |= {("collect", name, *part) for part in parts} if shards > 1 else {("collect", name)}
    found = []
    for one in of_kind(rendered(variant), "Deployment"):
        if one["metadata"]["labels"]["app.kubernetes.io/component"] == "collector":
            assert one["spec"]["replicas"] == 1
            assert one["spec"]["strategy"] == {"type": "Recreate"}
            found.append(tuple(one["spec"]["template"]["spec"]["containers"][0]["args"]))
    assert sorted(found) == sorted(expected)


@every_variant
def test_selectors_find_their_own_pods_only(rendered: Callable[[str], list[Object]], variant: str) -> None:
    objects = rendered(variant)
    work = of_kind(objects, *WORK)
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in work]
    for index, one in enumerate(work):
        assert [selects(one["spec"]["selector"], found) for found in labels] == [i == index for i in range(len(work))]
    for one in of_kind(objects, "PodDisruptionBudget", "PodMonitor"):
        assert any(selects(one["spec"]["selector"], found) for found in labels), one["metadata"]["name"]
    for one in of_kind(objects, "Service"):
        assert sum(selects({"matchLabels": one["spec"]["selector"]}, found) for found in labels) == 1
    every = labels + [pod["metadata"]["labels"] for pod in kubernetes.pods_of(objects)]
    for one in of_kind(objects, "NetworkPolicy"):
        assert any(selects(one["spec"]["podSelector"], found) for found in every), one["metadata"]["name"]


def allowed(objects: list[Object], labels: dict[str, str], way: str) -> tuple[bool, list[Object]]:
    """Whether a pod's traffic is denied by default, and the rules that allow some of it."""
    mine = [one["spec"] for one in of_kind(objects, "NetworkPolicy") if selects(one["spec"]["podSelector"], labels)]
    rules = [rule for spec in mine for rule in spec.get(way.lower(), [])]
    return any(way in spec["policyTypes"] for spec in mine), rules


@pytest.mark.parametrize("variant", [name for name in kubernetes.VARIANTS if name != "open"])
def test_nothing_goes_in_or_out_but_what_the_work_needs(rendered: Callable[[str], list[Object]], variant: str) -> None:
    objects = rendered(variant)
    simulated = variant == "simulator"
    kafka_port = 9096 if variant == "managed Kafka" else 9093
    for component, pod in by_component(objects):
        labels = pod["metadata"]["labels"]
        denied, outward = allowed(objects, labels, "Egress")
        ports = {port["port"] for rule in outward for port in rule["ports"]}
        assert denied
        assert all(rule["to"] for rule in outward)
        served = {9001, 9002, 9003, 9004, 9005, 9006, 9007}
        world = {443, 8443} if labels.get("exchange") == "okx" else {443}
        needed = {
            "simulator": set(),
            "detector": {53, kafka_port},
            "collector": {53, kafka_port} | (served if simulated else world),
            "decider": {53, kafka_port} | (served if simulated else {443}),
        }[component]
        assert ports == needed, labels
        for block in [
            peer["ipBlock"] for rule in outward if {443} & {p["port"] for p in rule["ports"]} for peer in rule["to"]
        ]:
            assert "169.254.0.0/16" in block["except"] or "fe80::/10" in block["except"]
        denied, inward = allowed(objects, labels, "Ingress")
        assert denied
        assert all(rule["from"] for rule in inward)
        monitored = [rule for rule in inward if rule["ports"] == [{"protocol": "TCP", "port": "metrics"}]]
        assert [rule["from"] for rule in monitored] == [values()["networkPolicy"]["metrics"]["from"]]
        assert len(inward) == (2 if component == "simulator" else 1)


@pytest.fixture
def read_by(
    rendered: Callable[[str], list[Object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _no_variables: None
) -> Callable[[str], dict[str, settings.Settings]]:
    """What the services of a variant read: settings by the arguments of their containers."""

    def read(variant: str) -> dict[str, settings.Settings]:
        objects = rendered(variant)
        config = next(one for one in of_kind(objects, "ConfigMap") if "20-cluster.toml" in one["data"])
        folder = tmp_path / "etc"
        folder.mkdir()
        for name, text in config["data"].items():
            (folder / name).write_text(text)
        found = {}
        for pod in kubernetes.pods_of(objects):
            (container,) = pod["spec"]["containers"]
            with monkeypatch.context() as patch:
                for variable in container["env"]:
                    patch.setenv(variable["name"], variable["value"])
                if "ARB_CONFIG" in os.environ:
                    patch.setenv("ARB_CONFIG", str(folder))
                found[" ".join(container["args"])] = settings.load()
        return found

    return read


@every_variant
def test_what_the_pods_are_told_are_settings(
    read_by: Callable[[str], dict[str, settings.Settings]], variant: str
) -> None:
    found = read_by(variant)
    given = kubernetes.VARIANTS[variant].get("kafka", {})
    for arguments, read in found.items():
        if arguments.startswith("simulate"):
            continue
        auth = given.get("auth", {}).get("type", "sasl")
        assert ("sasl.password" in read.kafka.option_files) == (auth == "sasl")
        assert not [option for option in read.kafka.options if option.endswith(("password", "key.pem"))]
        if arguments.startswith(("collect", "detect", "decide")):
            assert (read.metrics.host, read.metrics.port, read.log.json_lines) == ("0.0.0.0", 9100, True)
    if variant == "everything":
        assert found["detect"].detector.open_net_bps == 8
        assert not found["detect"].exchanges["okx"].enabled
        assert found["collect kraken --shard 1/2"].kafka.options["sasl.username"] == "collector-kraken"
        assert str(found["decide"].providers["openai"].api_key_file) == "/run/secrets/models/openai"
    if variant == "managed Kafka":
        assert found["detect"].kafka.options["sasl.username"] == "team-a"
        assert found["topics apply --brokers 2 --wait-s 120"].kafka.options["sasl.username"] == "operator"
    if variant == "open":
        assert found["decide"].kafka.client_options() == {}


@every_variant
def test_deciders_together_stay_within_the_limits(
    read_by: Callable[[str], dict[str, settings.Settings]], variant: str
) -> None:
    given = kubernetes.VARIANTS[variant].get("decider", {})
    keda = given.get("keda", {})
    most = keda.get("maxReplicas", 8) if keda.get("enabled") else given.get("replicas", 2)
    read = read_by(variant)["decide"]
    limits = values()["decider"]["limits"]
    for part, whole in (
        (read.decider.max_day_usd, limits["max_day_usd"]),
        (read.decider.max_minute_usd, limits["max_minute_usd"]),
        (read.guards.shadow_max_day_usd, limits["shadow_max_day_usd"]),
        *((one.max_day_usd, limits["providers"][name]["max_day_usd"]) for name, one in read.providers.items()),
    ):
        assert Decimal(whole) - Decimal("0.0001") <= part * most <= Decimal(whole)
    for name, provider in read.providers.items():
        assert provider.burst * most <= limits["providers"][name]["burst"]
        assert provider.calls_per_s * most <= limits["providers"][name]["calls_per_s"]


@pytest.mark.parametrize("variant", ["simulator"])
def test_simulated_nothing_real_is_named(
    read_by: Callable[[str], dict[str, settings.Settings]], rendered: Callable[[str], list[Object]], variant: str
) -> None:
    read = read_by(variant)["decide"]
    urls = [provider.base_url for provider in read.providers.values()]
    for exchange in read.exchanges.values():
        urls += [exchange.ws_url, exchange.rest_url]
        urls += [exchange.second.ws_url, exchange.second.rest_url] if exchange.second else []
    assert {urlsplit(url).hostname for url in urls} == {"arbiter-simulator"}
    (service,) = (
        one for one in of_kind(rendered(variant), "Service") if one["metadata"]["name"] == "arbiter-simulator"
    )
    assert {urlsplit(url).port for url in urls} == {port["port"] for port in service["spec"]["ports"]}
    assert "model-keys" not in yaml.safe_dump(rendered(variant)), "a real key must not reach simulated models"


@every_variant
def test_secrets_stand_in_no_object_of_the_chart(rendered: Callable[[str], list[Object]], variant: str) -> None:
    objects = rendered(variant)
    assert not of_kind(objects, "Secret", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    for one in of_kind(objects, "ConfigMap"):
        assert "password" not in json.dumps(one["data"])
        assert "api_key_file" not in json.dumps(one["data"])
    for pod in kubernetes.pods_of(objects):
        for variable in pod["spec"]["containers"][0]["env"]:
            assert "valueFrom" not in variable
        mounts = {mount["name"]: mount for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume or "projected" in volume:
                assert mounts[volume["name"]]["readOnly"] is True
                source = volume.get("secret") or volume["projected"]
                assert source["defaultMode"] == 0o440


@pytest.mark.parametrize("variant", ["everything", "client certificates", "managed Kafka", "open"])
def test_keda_scales_the_group_that_decides(rendered: Callable[[str], list[Object]], variant: str) -> None:
    objects = rendered(variant)
    (scaled,) = of_kind(objects, "ScaledObject")
    (target,) = of_kind(objects, "StatefulSet")
    assert scaled["spec"]["scaleTargetRef"]["name"] == target["metadata"]["name"]
    assert "replicas" not in target["spec"], "Helm would undo what KEDA has scaled"
    assert scaled["spec"]["minReplicaCount"] >= 1
    assert scaled["spec"]["maxReplicaCount"] <= topics.EVENT_PARTITIONS
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["consumerGroup"] == GROUP
    assert trigger["metadata"]["topic"] == topics.OPPORTUNITIES
    assert trigger["metadata"]["version"] == "3.6.0"
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    logins = of_kind(objects, "TriggerAuthentication")
    assert [trigger.get("authenticationRef")] == [{"name": one["metadata"]["name"]} for one in logins] or not logins
    assert bool(logins) == (variant != "open")


def test_a_decider_remembers_what_it_spent(rendered: Callable[[str], list[Object]]) -> None:
    (kept,) = of_kind(rendered("default"), "StatefulSet")
    assert [claim["metadata"]["name"] for claim in kept["spec"]["volumeClaimTemplates"]] == ["state"]
    assert kept["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenScaled": "Retain", "whenDeleted": "Retain"}
    (lost,) = of_kind(rendered("open"), "StatefulSet")
    assert "volumeClaimTemplates" not in lost["spec"]


def relabelled(rules: list[Object], labels: dict[str, str]) -> dict[str, str]:
    """As Prometheus rewrites a target's labels (action "replace")."""
    found = {
        f"__meta_kubernetes_pod_label_{re.sub(r'[^a-zA-Z0-9_]', '_', key)}": value for key, value in labels.items()
    }
    for rule in rules:
        source = ";".join(found.get(label, "") for label in rule["sourceLabels"])
        if match := re.fullmatch(rule.get("regex", "(.*)"), source):
            found[rule["targetLabel"]] = match.expand(re.sub(r"\$(\d)", r"\\\1", rule.get("replacement", "$1")))
    return found


@pytest.mark.parametrize("variant", ["everything", "simulator"])
def test_pods_are_scraped_under_the_names_that_the_rules_ask_for(
    rendered: Callable[[str], list[Object]], variant: str
) -> None:
    (monitor,) = of_kind(rendered(variant), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    hosts: dict[str, list[str]] = {}
    for one in of_kind(rendered(variant), *WORK):
        labels = dict(one["spec"]["template"]["metadata"]["labels"])
        if one["kind"] == "StatefulSet":
            labels["apps.kubernetes.io/pod-index"] = "0"  # Kubernetes' own
        assert selects(monitor["spec"]["selector"], labels)
        host = relabelled(endpoint["relabelings"], labels)["host"]
        hosts.setdefault(labels[monitor["spec"]["jobLabel"]], []).append(host)
    one_each = [f"collector-{name}" for name in ("binance", "bybit", "coinbase")]
    if variant == "everything":
        collectors = [*one_each, "collector-kraken-1", "collector-kraken-2"]
        assert hosts == {"collector": collectors, "detector": ["detector"], "decider": ["decider-0"]}
    else:
        assert hosts.keys() == {"collector", "detector", "decider", "simulator"}
        assert hosts["collector"] == [*one_each, "collector-kraken", "collector-okx"]


def test_the_alerts_are_those_of_prometheus(rendered: Callable[[str], list[Object]]) -> None:
    (made,) = of_kind(rendered("everything"), "PrometheusRule")
    expected = [
        group for file in sorted(kubernetes.RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]
    ]
    assert made["spec"] == {"groups": expected}
    assert not of_kind(rendered("default"), "PrometheusRule", "PodMonitor")


def test_other_settings_roll_the_pods_and_the_same_do_not(helm: Path) -> None:
    def sums(text: str) -> set[str]:
        objects = [one for one in yaml.safe_load_all(kubernetes.render(helm, {"settings": text})) if one]
        return {pod["metadata"]["annotations"]["checksum/settings"] for _, pod in by_component(objects)}

    assert sums("") == sums("")
    assert sums("") != sums('[detector]\nopen_net_bps = "9"\n')


REFUSED: list[tuple[Object, str]] = [
    ({"settings": "not toml"}, "settings: this is no TOML"),
    ({"settings": '[kafka]\nservers = "x:1"\n'}, "[kafka] is set by the values kafka.servers"),
    ({"settings": "[metrics]\nport = 1\n"}, "[metrics] is the chart's"),
    ({"settings": "[exchanges.okx]\nenabled = false\n"}, "set the value collectors.okx.enabled"),
    ({"settings": '[decider]\nmax_day_usd = "5"\n'}, "set the value decider.limits.max_day_usd"),
    ({"settings": '[decider]\nstate_file = "x"\n'}, "decider.state_file is the chart's"),
    ({"settings": '[guards]\nshadow_max_day_usd = "5"\n'}, "set the value decider.limits.shadow_max_day_usd"),
    ({"settings": "[providers.openai]\nburst = 5\n"}, "set the value decider.limits.providers.openai.burst"),
    ({"settings": '[providers.openai]\napi_key_file = "x"\n'}, "name the Secret in the value decider.modelKeys.openai"),
    ({"settings": '[providers.mine]\nbase_url = "http://x"\n'}, "add decider.limits.providers.mine"),
    (
        {"decider": {"modelKeys": {"opnai": {"secret": "a", "key": "b"}}}},
        "no such provider in decider.limits.providers",
    ),
    ({"decider": {"limits": {"max_minute_usd": "0.03"}}}, "no model would ever be asked"),
    ({"decider": {"keda": {"enabled": True, "minReplicas": 4, "maxReplicas": 2}}}, "must not be above maxReplicas"),
    ({"decider": {"replicas": 9}}, "/decider/replicas"),
    ({"decider": {"limits": {"max_day_usd": 20}}}, "/decider/limits/max_day_usd"),
    ({"detector": {"replicas": 17}}, "/detector/replicas"),
    ({"detector": {"resources": {"requests": {}, "limits": {"memory": None}}}}, "/detector/resources/limits"),
    ({"collectors": {"mtgox": {"enabled": True, "shards": 1, "ports": [443]}}}, "mtgox"),
    ({"kafka": {"servers": "kafka"}}, "/kafka/servers"),
    ({"kafka": {"options": {"sasl.password": "x"}}}, "kafka.options.sasl.password: a secret stands in a Secret"),
    ({"kafka": {"auth": {"type": "tls"}, "tls": {"enabled": False}}}, "tls needs kafka.tls.enabled"),
    ({"image": {"tag": "latest"}}, "/image/tag"),
    ({"pod": {"terminationGracePeriodSeconds": 5}}, "/pod/terminationGracePeriodSeconds"),
    ({"replicas": 3}, "replicas"),
]


@pytest.mark.parametrize(("wrong", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_wrong_values_are_refused_in_words(helm: Path, wrong: Object, words: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        kubernetes.render(helm, wrong)
    assert words in refused.value.stderr


# ---------------------------------------------------------------- with kubeconform


@pytest.fixture(scope="module")
def conforming(helm: Path) -> Callable[[str], int]:
    tool, schemas = kubernetes.found("kubeconform"), kubernetes.found_schemas()
    if tool is None or schemas is None:
        pytest.skip("kubeconform or the schemas are not in the cache: python -m tools.kubernetes check")
    return lambda text: kubernetes.conform(tool, schemas, text)


@every_variant
def test_the_chart_conforms(helm: Path, conforming: Callable[[str], int], variant: str) -> None:
    kubernetes.lint(helm, kubernetes.VARIANTS[variant])
    text = kubernetes.render(helm, kubernetes.VARIANTS[variant])
    assert conforming(text) == len([one for one in yaml.safe_load_all(text) if one])


@pytest.mark.parametrize("file", sorted(kubernetes.RESOURCES.glob("*.yaml")), ids=lambda file: file.name)
def test_the_kafka_resources_conform(conforming: Callable[[str], int], file: Path) -> None:
    assert conforming(file.read_text()) == len(list(yaml.safe_load_all(file.read_text())))


def test_an_unknown_field_does_not_conform(conforming: Callable[[str], int]) -> None:
    (topic, *_) = yaml.safe_load_all((kubernetes.RESOURCES / "topics.yaml").read_text())
    topic["spec"]["partition"] = 3
    with pytest.raises(subprocess.CalledProcessError) as refused:
        conforming(yaml.safe_dump(topic))
    assert "partition" in refused.value.stdout
