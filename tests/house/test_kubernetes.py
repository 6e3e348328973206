"""What deploy/kubernetes promises: read by kubectl's own kustomize, held to the schemas of Kubernetes and of KEDA. No
cluster has run it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from orchestrator.api.serving import DRAIN
from orchestrator.embedded import valkey_server
from orchestrator.flower import SAVE_EVERY_MS
from tests.support.redis_servers import HOST, free_port, wait_for
from tests.support.validators import validator
from tests.support.valkey import WRAPPER
from workers.lifecycle import WARM_SHUTDOWN

pytestmark = pytest.mark.debian
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
PARTS = ("api", "cli", "coordinator", "flower", "worker")
# Of yours, with KEDA, and without our Redis.
OTHER = """
resources: [base]
components: [keda]
namespace: changeover
configMapGenerator:
  - {name: changeover-redis, behavior: merge, literals: ["scheme=rediss", "address=redis.example.org:6379"]}
"""
KEDA = """
import json, sys
from cloudcoil.models.keda.v1alpha1 import ScaledObject
print(ScaledObject.model_validate(json.load(sys.stdin)).model_dump_json(by_alias=True, exclude_unset=True))
"""


def run(*words: object, given: str = "") -> str:
    done = subprocess.run(list(map(str, words)), input=given, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def built(folder: Path = FOLDER) -> str:
    return run(validator("kubectl"), "kustomize", folder)


def things(kind: str, text: str = "") -> Mapping[str, Any]:
    """By name."""
    found = [each for each in yaml.safe_load_all(text or built()) if each["kind"] == kind]
    return {each["metadata"]["name"].removeprefix("changeover-"): each for each in found}


def pods() -> Mapping[str, Any]:
    found = {**things("Deployment"), **things("StatefulSet")}
    return {name: each["spec"]["template"]["spec"] for name, each in found.items()}


@pytest.fixture
def other(tmp_path: Path) -> str:
    folder = tmp_path / "kubernetes"
    subprocess.run(["cp", "-r", FOLDER, folder], check=True)
    (folder / "kustomization.yaml").write_text(OTHER)
    return built(folder)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_all_of_it_is_what_kubernetes_knows(tmp_path: Path, version: str) -> None:
    whole = tmp_path / "whole.yaml"
    whole.write_text(built())
    told = run(validator("kubernetes-validate"), "--strict", "--kubernetes-version", version, whole)
    assert told.count(" passed for resource ") == len(list(yaml.safe_load_all(built())))


def test_keda_counts_servers_in_flight_and_leaves_the_number_to_itself(other: str) -> None:
    scaled = things("ScaledObject", other)["worker"]
    # Its models are made of KEDA's own definition, and drop what that does not know.
    scaled["metadata"].pop("labels", None)
    assert json.loads(run(validator("python"), "-c", KEDA, given=json.dumps(scaled))) == scaled
    assert scaled["spec"]["scaleTargetRef"]["name"] in {
        each["metadata"]["name"] for each in things("Deployment", other).values()
    }
    assert "replicas" not in things("Deployment", other)["worker"]["spec"]
    (trigger,) = scaled["spec"]["triggers"]
    assert "changeover_servers{state" in trigger["metadata"]["query"]
    assert scaled["spec"]["minReplicaCount"] >= 1 and scaled["spec"]["fallback"]["replicas"] >= 1


def test_a_redis_of_ones_own_takes_the_place_of_ours(other: str) -> None:
    assert not things("StatefulSet", other) and "redis" not in things("Service", other)
    (config,) = things("ConfigMap", other).values()
    assert config["data"] == {"scheme": "rediss", "address": "redis.example.org:6379"}
    used = set(re.findall(r"changeover-redis-\w+", other))
    assert used == {config["metadata"]["name"]}, "each part reads this one"


@pytest.mark.parametrize("name", [*PARTS, "redis"])
def test_no_pod_is_more_than_it_has_to_be(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "variables of Services would look like settings"
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    assert not container["image"].endswith(":latest") and ":" in container["image"]
    assert "hostPath" not in json.dumps(pod) and not pod.get("hostNetwork")


def test_the_user_is_the_images_and_the_image_is_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {pods()[name]["containers"][0]["image"].rpartition(":")[2] for name in PARTS} == {version}
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    for name in PARTS:
        context = pods()[name]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))


def test_each_is_given_the_time_that_it_needs_to_end() -> None:
    grace = {name: pod["terminationGracePeriodSeconds"] for name, pod in pods().items()}
    first = {name: pods()[name]["containers"][0].get("lifecycle") for name in PARTS}
    waits = {name: int(each["preStop"]["exec"]["command"][1]) if each else 0 for name, each in first.items()}
    assert grace["worker"] > WARM_SHUTDOWN + waits["worker"]
    assert grace["api"] > DRAIN + waits["api"]
    assert grace["flower"] > SAVE_EVERY_MS / 1000 + waits["flower"]


def test_each_part_has_its_own_secrets_and_all_of_them_are_made(tmp_path: Path) -> None:
    text = run(FOLDER / "make-secrets", tmp_path)
    made = things("Secret", text)
    assert set(made) == {"api", "coordinator", "worker", "flower", "redis-users"}
    for secret in made.values():
        for name, data in secret["data"].items():
            assert base64.b64decode(data) == (tmp_path / name).read_bytes()
    for name in PARTS:
        pod, user = pods()[name], "api" if name == "cli" else name
        mounted = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        assert mounted == [f"changeover-{user}"]
        given = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        assert given["CHANGEOVER_REDIS_URL"] == f"$(REDIS_SCHEME)://{user}@$(REDIS_ADDRESS)/0"
        files = [
            word for word in [*given.values(), *pod["containers"][0].get("args", ())] if word and "secrets/" in word
        ]
        assert {Path(file).name for file in files} == set(made[user]["data"])


def test_nothing_is_reached_and_reaches_out_but_what_is_named() -> None:
    policies = {name: each["spec"] for name, each in things("NetworkPolicy").items()}
    part_of = {"app.kubernetes.io/part-of": "changeover"}
    nothing = {"podSelector": {"matchLabels": part_of}, "policyTypes": ["Ingress", "Egress"]}
    assert nothing in policies.values()
    open_to_all = [each for each in policies.values() if {} in each.get("egress", ())]
    assert [each["podSelector"]["matchLabels"] for each in open_to_all] == [
        {"app.kubernetes.io/name": "worker", **part_of}
    ]
    for each in policies.values():
        assert all("from" in rule for rule in each.get("ingress", ())), "nobody is let in from anywhere"
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in things("Deployment").values()]
    labels += [each["spec"]["template"]["metadata"]["labels"] for each in things("StatefulSet").values()]
    assert all(part_of.items() <= each.items() for each in labels), "the first policy holds for all"


def test_budgets_keep_one_of_each_at_work_and_no_node_from_being_drained() -> None:
    budgets = things("PodDisruptionBudget")
    assert set(budgets) == {"api", "coordinator", "worker"}
    for name, budget in budgets.items():
        assert budget["spec"]["maxUnavailable"] == 1
        assert things("Deployment")[name]["spec"]["replicas"] >= 2
        chosen = budget["spec"]["selector"]["matchLabels"]
        assert chosen.items() <= things("Deployment")[name]["spec"]["template"]["metadata"]["labels"].items()


def test_redis_is_told_what_its_shipped_settings_say_and_begins_so(tmp_path: Path) -> None:
    command = pods()["redis"]["containers"][0]["command"]
    told = {words.split()[0]: words.split()[1:] for words in " ".join(w or '""' for w in command[1:]).split("--")[1:]}
    lines = (ROOT / "deploy" / "redis" / "redis.conf").read_text().splitlines()
    shipped = {line.split()[0]: line.split()[1:] for line in lines if line.strip() and not line.startswith("#")}
    shipped["aclfile"] = ["/run/secrets/changeover/users.acl"]
    assert told == shipped
    run(ROOT / "deploy" / "make-secrets", tmp_path / "secrets")
    port = free_port()
    here = {"/run/secrets/changeover/users.acl": str(tmp_path / "secrets" / "users.acl")}
    words = [here.get(word, word) for word in command[1:]]
    words[words.index("--bind") + 1 : words.index("--bind") + 3] = [HOST]
    with (tmp_path / "log").open("wb") as log:
        argv = [str(valkey_server()), *words, "--port", str(port)]
        wrapped = [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), *argv]
        server = subprocess.Popen(wrapped, cwd=tmp_path, stdout=log, stderr=log)
    try:
        with redis.Redis(port=port, username="health", password="none") as client:
            wait_for("Redis", client.ping)
        password = (tmp_path / "secrets" / "redis-admin").read_text().strip()
        with redis.Redis(port=port, username="admin", password=password, decode_responses=True) as admin:
            assert admin.config_get("save") == {"save": ""}
            assert admin.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert admin.config_get("appendonly") == {"appendonly": "yes"}
    finally:
        server.kill()
        server.wait()
