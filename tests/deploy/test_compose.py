"""docker-compose.yml and what stands beside it: rules that every service keeps, names that others rely on."""

import base64
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import settings, topics

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BROKERS = ["kafka-1", "kafka-2", "kafka-3"]
ONCE = ["topics", "feeds"]
"""They end by themselves; others wait for that."""

SCALED = ["detector", "decider"]
COLLECTORS = [f"collector-{exchange}" for exchange in topics.EXCHANGES]
ARBITER = [*COLLECTORS, *SCALED, "simulator", "feeds"]
LONGEST_STOP_S = 10
"""What a service takes at most to end in order."""


class _Overriding(yaml.SafeLoader):
    """Knows Compose's own tags."""


_Overriding.add_constructor("!override", lambda loader, node: loader.construct_mapping(node, deep=True))
SINGLE = yaml.load((ROOT / "docker-compose.single.yml").read_text(), _Overriding)


def limits(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service["deploy"]["resources"]["limits"]
    return found


def test_there_is_a_collector_for_each_exchange_and_nothing_unknown():
    known = {*BROKERS, *ONCE, *COLLECTORS, *SCALED, "simulator", "prometheus", "grafana", "kminion"}
    assert set(SERVICES) == known
    for exchange in topics.EXCHANGES:
        assert SERVICES[f"collector-{exchange}"]["command"] == ["collect", exchange]
    assert set(topics.EXCHANGES) == set(settings.load().exchanges)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_watched_and_without_rights(name: str):
    service = SERVICES[name]
    assert set(limits(service)) == {"cpus", "memory", "pids"}
    assert float(limits(service)["cpus"]) <= 1, "an engine refuses more than the machine has"
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert not {"privileged", "cap_add", "user", "network_mode", "pid", "container_name"} & set(service)
    if name not in BROKERS:  # a broker writes its configuration into the image's own folder
        assert service["read_only"] is True
        assert any(str(mount).startswith("/tmp") for mount in service["tmpfs"])
    if name in ONCE:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert "healthcheck" in service
        assert service["healthcheck"]["start_period"]
        assert int(service["stop_grace_period"].removesuffix("s")) > LONGEST_STOP_S


def test_only_what_cannot_be_scaled_has_a_port_of_the_host_and_only_on_loopback():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {*BROKERS, "prometheus", "grafana"}
    for ports in published.values():
        for port in ports:
            assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z_0-9]+:-\d+\}:\d+", port)
    assert not set(published) & {*SCALED, *COLLECTORS}


def test_what_has_no_business_outside_has_no_way_out():
    assert COMPOSE["networks"]["bus"] == {"internal": True}
    inside = {name for name, service in SERVICES.items() if service["networks"] == ["bus"]}
    assert inside == {"topics", "feeds", "detector", "simulator", "kminion"}


def test_services_wait_for_the_topics_and_for_what_the_feeds_are():
    for name in (*COLLECTORS, *SCALED):
        assert SERVICES[name]["depends_on"] == {
            once: {"condition": "service_completed_successfully"} for once in ("topics", "feeds")
        }
    assert SERVICES["topics"]["depends_on"] == {name: {"condition": "service_healthy"} for name in BROKERS}
    assert SERVICES["feeds"]["depends_on"] == {"simulator": {"condition": "service_healthy", "required": False}}


def test_nothing_runs_before_it_is_said_whether_the_feeds_are_live_and_only_two_may_say_it():
    for name in (*COLLECTORS, *SCALED):
        assert SERVICES[name]["environment"]["ARB_CONFIG"].endswith(":/var/lib/arbiter-feeds/feeds.toml")
        assert "feeds:/var/lib/arbiter-feeds:ro" in SERVICES[name]["volumes"]
    writers = {
        name for name, service in SERVICES.items() if "feeds:/var/lib/arbiter-feeds" in service.get("volumes", [])
    }
    assert writers == {"simulator", "feeds"}
    assert SERVICES["simulator"]["entrypoint"] == ["sh", "/feeds.sh", "simulated", "arb"]
    assert SERVICES["simulator"]["environment"]["ARB_CONFIG"] == "/etc/arbiter", "never its own file"


@pytest.mark.parametrize("name", [*COLLECTORS, *SCALED, "simulator"])
def test_every_variable_of_ours_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch):
    for variable, value in SERVICES[name]["environment"].items():
        if variable.startswith("ARB_") and variable != "ARB_CONFIG":
            default = re.fullmatch(r"\$\{\w+:-(.*)\}", value)
            monkeypatch.setenv(variable, default[1] if default else value)
    loaded = settings.load()
    assert loaded.kafka.servers == ",".join(f"{broker}:19092" for broker in BROKERS)


def test_no_variable_of_the_decider_can_take_precedence_over_the_simulated_models():
    assert not [name for name in SERVICES["decider"]["environment"] if name.startswith(("ARB_PROVIDERS", "ARB_MODELS"))]


def test_each_provider_has_a_secret_that_may_be_absent():
    wanted = {f"{provider.api_key_env}_FILE" for provider in settings.load().providers.values()}
    given = SERVICES["decider"]["environment"]
    assert {name for name in given if name.endswith("_KEY_FILE")} == wanted
    for variable in wanted:
        secret = variable.removesuffix("_FILE").lower()
        assert given[variable] == f"${{{variable}:+/run/secrets/{secret}}}", "empty without a file: rules only"
        assert COMPOSE["secrets"][secret] == {"file": f"${{{variable}:-./deploy/no-key}}"}
        assert secret in SERVICES["decider"]["secrets"]
    assert (ROOT / "deploy" / "no-key").read_bytes() == b""
    assert not any(service.get("secrets") for name, service in SERVICES.items() if name != "decider")


def test_the_brokers_are_one_cluster_that_loses_nothing_with_one_of_them():
    common = {}
    for number, name in enumerate(BROKERS, 1):
        environment = dict(SERVICES[name]["environment"])
        assert environment.pop("KAFKA_NODE_ID") == number
        port = re.escape(SERVICES[name]["ports"][0].removeprefix("127.0.0.1:").removesuffix(":9092"))
        advertised = environment.pop("KAFKA_ADVERTISED_LISTENERS")
        assert re.fullmatch(rf"INTERNAL://{name}:19092,EXTERNAL://127\.0\.0\.1:{port}", advertised)
        assert SERVICES[name]["volumes"] == [f"{name}:/var/lib/kafka/data"]
        assert name in COMPOSE["volumes"]
        common = common or environment
        assert environment == common
    assert common["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"
    assert common["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert {v for k, v in common.items() if k.endswith("REPLICATION_FACTOR")} == {3}
    assert {v for k, v in common.items() if k.endswith(("MIN_ISR", "MIN_INSYNC_REPLICAS"))} == {2}
    cluster = re.fullmatch(r"\$\{KAFKA_CLUSTER_ID:-([\w-]{22})\}", common["CLUSTER_ID"])
    assert cluster is not None
    assert len(base64.urlsafe_b64decode(cluster[1] + "==")) == 16


def test_one_broker_needs_one_copy_of_everything():
    one = SINGLE["services"]["kafka-1"]["environment"]
    three = SERVICES["kafka-1"]["environment"]
    counted = [name for name in three if name.endswith(("REPLICATION_FACTOR", "MIN_ISR", "MIN_INSYNC_REPLICAS"))]
    assert {one[name] for name in counted} == {1}
    assert one["KAFKA_CONTROLLER_QUORUM_VOTERS"] == "1@kafka-1:9093"
    assert SINGLE["services"]["topics"]["environment"]["BROKERS"] == 1
    for name, service in SERVICES.items():
        for variable in ("ARB_KAFKA_SERVERS", "KAFKA_BROKERS", "BOOTSTRAP"):
            if "kafka-2" in service.get("environment", {}).get(variable, "") and name != "simulator":
                assert set(SINGLE["services"][name]["environment"][variable].split(",")) == {"kafka-1:19092"}
    assert SINGLE["name"] != COMPOSE["name"], "a broker that began alone cannot join two others"


def test_the_example_has_every_variable_with_its_default_and_no_other():
    used: dict[str, str] = {}
    for file in ("docker-compose.yml",):
        for name, default in re.findall(
            r"\$\{([A-Z_0-9]+)(?::[-+]((?:[^{}]|\{[^}]*\})*))?\}", (ROOT / file).read_text()
        ):
            if not default.startswith(("/run/secrets/", "./deploy/no-key")):
                used[name] = default
            used.setdefault(name, "")
    single = re.findall(r"\$\{([A-Z_0-9]+)", (ROOT / "docker-compose.single.yml").read_text())
    assert set(single) <= set(used)
    shown = dict(re.findall(r"^#([A-Z_0-9]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(shown) == set(used)
    for name, default in used.items():
        assert shown[name] == default or (name.endswith("_KEY_FILE") and shown[name].startswith("./secrets/"))


def test_images_are_pinned():
    for name, service in SERVICES.items():
        image = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", service["image"])
        tag = image.rpartition(":")[2]
        assert image == "arbiter:dev" or re.fullmatch(r"v?\d+\.\d+\.\d+", tag), f"{name}: {image}"


def test_what_is_mounted_from_here_is_here():
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).partition(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), f"{name}: {mount}"
            assert not source.startswith("./") or mount.endswith(":ro"), f"{name}: {mount}"


@pytest.fixture(scope="module")
def compose() -> list[str]:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed here")
    return [docker, "compose", "--project-directory", str(ROOT)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], ["detector-1", "detector-2"]), (["--scale=detector=3"], ["detector-1", "detector-2", "detector-3"])],
    ids=["as the variable says", "as the command says"],
)
def test_a_later_up_keeps_the_number(compose: list[str], words: list[str], expected: list[str]):
    """A dry run: it asks the engine what there is, and says what it would create."""
    if subprocess.run([compose[0], "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")
    dry = [*compose, "--project-name=arb-dry", "--env-file=/dev/null", "--dry-run"]
    up = ["up", "--no-start", "--no-deps", "--pull=never", *words, "detector"]
    done = subprocess.run([*dry, *up], capture_output=True, text=True, env={**os.environ, "DETECTORS": "2"})
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"Container arb-dry-(\S+)  Created", done.stderr)) == expected


@pytest.mark.parametrize("files", [["docker-compose.yml"], ["docker-compose.yml", "docker-compose.single.yml"]])
@pytest.mark.parametrize("profiles", [[], ["sim"], ["monitoring"], ["sim", "monitoring"]])
def test_compose_understands_it(compose: list[str], files: list[str], profiles: list[str]):
    words = [*(f"--file={ROOT / file}" for file in files), *(f"--profile={profile}" for profile in profiles)]
    done = subprocess.run(
        [*compose, "--env-file=/dev/null", *words, "config", "--services"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    expected = {name for name, service in SERVICES.items() if set(service.get("profiles", profiles)) <= set(profiles)}
    if len(files) > 1:
        expected -= {"kafka-2", "kafka-3"}
    assert set(done.stdout.split()) == expected
