"""What `deploy/` and docker-compose.yml promise, as far as they can be held to it without an engine of containers.
`make check` holds the Dockerfile to hadolint and the compose file to its schema; here Compose itself reads it."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import ssl
import subprocess
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.api.serving import DRAIN
from orchestrator.cli import LATE, PANELS
from orchestrator.flower import SAVE_EVERY_MS
from providers.clients.haproxy_config import bundled_binary, environment
from tests.support.redis_servers import HOST, Certificates, free_port, wait_for
from tests.support.validators import validator
from workers.lifecycle import WARM_SHUTDOWN

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ALONE = "demo"  # it needs none of the others
OURS = sorted(name for name, service in SERVICES.items() if "build" in service and name != ALONE)
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_change_its_own_files_or_become_more_than_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and "cap_add" not in service
    assert not [volume for volume in service.get("volumes", ()) if "docker.sock" in volume]
    assert service.get("user") != "root"


def test_only_the_entrance_can_be_reached_and_nothing_inside_reaches_out_but_workers() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["haproxy"]
    joined = {name: service.get("networks", []) for name, service in SERVICES.items()}
    assert [name for name, networks in joined.items() if "outside" in networks] == ["worker", "haproxy"]
    assert [name for name, networks in joined.items() if not networks] == [ALONE]
    assert SERVICES[ALONE]["network_mode"] == "none" and "secrets" not in SERVICES[ALONE]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_every_secret_is_a_file_of_make_secrets_and_each_service_has_its_own_alone(tmp_path: Path) -> None:
    subprocess.run([ROOT / "deploy" / "make-secrets", tmp_path / "made"], check=True, capture_output=True, timeout=60)
    made = {file.name for file in (tmp_path / "made").iterdir()}
    assert {name: f"deploy/secrets/{name}" for name in COMPOSE["secrets"]} == {
        name: each["file"] for name, each in COMPOSE["secrets"].items()
    }
    # Only `token create` can make the one for Prometheus.
    assert set(COMPOSE["secrets"]) == made - {"redis-admin", "redis-replica", "redis-sentinel"} | {"prometheus"}
    assert {name: SERVICES[name]["secrets"] for name in ("prometheus", "grafana")} == {
        "prometheus": ["prometheus"],
        "grafana": ["grafana"],
    }
    for name in OURS:
        environment, secrets = SERVICES[name]["environment"], SERVICES[name]["secrets"]
        user = "api" if name == "cli" else name
        assert environment["CHANGEOVER_REDIS_URL"] == f"redis://{user}@redis:6379/0"
        assert environment["CHANGEOVER_REDIS_PASSWORD_FILE"] == f"/run/secrets/redis-{user}"
        assert [secret for secret in secrets if secret.startswith("redis-")] == [f"redis-{user}"]
        assert not [value for value in environment.values() if "PASSWORD" in str(value).upper()]


def test_every_part_is_a_command_and_is_given_the_time_that_it_needs_to_end() -> None:
    commands = {command.__name__ for panel in PANELS.values() for command in panel} | set(LATE)
    grace = {name: int(SERVICES[name].get("stop_grace_period", "10s").rstrip("s")) for name in OURS}
    assert {SERVICES[name]["command"][0] for name in OURS if name != "cli"} <= commands
    assert grace["worker"] > WARM_SHUTDOWN
    assert grace["api"] > DRAIN
    assert grace["flower"] >= SAVE_EVERY_MS / 1000


def test_redis_forgets_and_evicts_nothing_and_begins_before_all_others() -> None:
    settings = dict(line.split(maxsplit=1) for line in config("redis/redis.conf") if not line.startswith("#"))
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["aclfile"] == "/run/secrets/users.acl"
    assert all(SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}} for name in OURS)
    assert "redis:/data" in SERVICES["redis"]["volumes"]


def config(name: str) -> list[str]:
    return [line for line in (ROOT / "deploy" / name).read_text().splitlines() if line.strip()]


def test_the_image_is_made_of_all_packages_from_hashed_locks_and_runs_as_nobody_of_the_host() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    let_in = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert packages == copied == let_in - {"LICENSE", "requirements"}
    for lock in re.findall(r"--requirement \S*?(\w+\.txt)", DOCKERFILE):
        text = (ROOT / "requirements" / lock).read_text()
        pins = re.findall(r"^[a-z0-9-]+(?:\[[a-z,]+\])?==", text, re.MULTILINE)
        assert pins and text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text, "a lock names no index"
    assert DOCKERFILE.count("--require-hashes") == DOCKERFILE.count("--requirement ") == 3
    user = re.search(r"^USER (\d+:\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None and all(SERVICES[name]["user"] == user[1] for name in [*OURS, ALONE])
    stages = re.findall(r" AS (\S+)$", DOCKERFILE, re.MULTILINE)
    targets = {name: SERVICES[name]["build"]["target"] for name in [*OURS, ALONE]}
    assert targets == {**dict.fromkeys(OURS, "service"), ALONE: "demo"} and set(targets.values()) <= set(stages)
    assert stages[-1] == "service", "what `docker build` makes unless it is told"


# -- by Compose itself -------------------------------------------------------------------------------------------------

DEFAULT = {"redis", "coordinator", "worker", "api", "flower", "haproxy"}


def composed(*profiles: str) -> dict[str, Any]:
    """What Compose makes of the file with these profiles."""
    words = [word for profile in profiles for word in ("--profile", profile)]
    done = subprocess.run(
        [validator("docker-compose"), "--file", ROOT / "docker-compose.yml", *words, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    whole: dict[str, Any] = json.loads(done.stdout)
    return whole


@pytest.mark.debian
def test_compose_reads_the_file_and_each_profile_adds_what_it_is_named_for() -> None:
    assert set(composed()["services"]) == DEFAULT
    assert set(composed("cli")["services"]) == DEFAULT | {"cli"}
    watching = composed("prometheus", "grafana")
    assert set(watching["services"]) == DEFAULT | {"prometheus", "grafana"}
    assert set(composed("*")["services"]) == set(SERVICES)
    assert all(Path(each["file"]).is_file() for each in watching["configs"].values())
    assert all(service["read_only"] for service in composed("*")["services"].values())


# -- what watches ------------------------------------------------------------------------------------------------------


def mounted(service: str) -> dict[str, Path]:
    """By where the service finds it: our file."""
    given = {each["target"]: COMPOSE["configs"][each["source"]]["file"] for each in SERVICES[service]["configs"]}
    return {target: ROOT / file for target, file in given.items()}


def test_grafana_finds_its_source_and_the_shipped_dashboard_where_it_looks_for_them() -> None:
    files = mounted("grafana")
    provisioning = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(files[f"{provisioning}/datasources/changeover.yml"].read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load(files[f"{provisioning}/dashboards/changeover.yml"].read_text())["providers"]
    boards = [file for target, file in files.items() if target.startswith(provider["options"]["path"] + "/")]
    assert boards == [ROOT / "deploy" / "grafana" / "changeover.json"]
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana"
    assert environment["GF_SERVER_SERVE_FROM_SUB_PATH"] == "true"
    assert environment["GF_SERVER_ROOT_URL"].endswith("/grafana/")


class Watched(http.server.BaseHTTPRequestHandler):
    """Tells the metrics to whoever shows the token."""

    def do_GET(self) -> None:
        ours = self.path == "/metrics" and self.headers.get("Authorization") == "Bearer co_token"
        told = b"changeover_workers 3\n" if ours else b""
        self.send_response(200 if ours else 401)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.debian
def test_prometheus_itself_asks_with_its_token_and_has_the_shipped_alarms(tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs Debian's prometheus")
    server = http.server.ThreadingHTTPServer((HOST, 0), Watched)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    files = mounted("prometheus")
    shutil.copy(files["/etc/prometheus/alerts.yml"], tmp_path)
    (tmp_path / "token").write_text("co_token\n")
    text = files["/etc/prometheus/prometheus.yml"].read_text()
    here = {"api:8088": f"{HOST}:{server.server_port}", "/run/secrets/prometheus": str(tmp_path / "token"), "15s": "1s"}
    for was, now in here.items():
        assert was in text
        text = text.replace(was, now)
    config, port = tmp_path / "prometheus.yml", free_port()
    config.write_text(text)
    words = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    assert [word.partition("=")[0] for word in SERVICES["prometheus"]["command"][:2]] == [
        word.partition("=")[0] for word in words
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, *words, f"--web.listen-address={HOST}:{port}"], stdout=log, stderr=log)

    def told(path: str) -> Any:
        status, said, _ = ask(f"http://{HOST}:{port}/api/v1/{path}")
        assert status == 200, said
        return json.loads(said)["data"]

    try:
        wait_for("a scrape", lambda: [each["health"] for each in told("targets")["activeTargets"]] == ["up"])
        wait_for("a value", lambda: told("query?query=changeover_workers")["result"][0]["value"][1] == "3")
        (group,) = told("rules")["groups"]
        assert len(group["rules"]) == len(yaml.safe_load((tmp_path / "alerts.yml").read_text())["groups"][0]["rules"])
    finally:
        process.kill()
        process.wait()
        server.shutdown()
        server.server_close()


# -- plain hosts -------------------------------------------------------------------------------------------------------

UNITS = ROOT / "deploy" / "systemd"


@pytest.mark.debian
def test_systemd_understands_the_units_and_finds_them_hardly_exposed(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    units = tmp_path / "etc" / "systemd" / "system"
    shutil.copytree(UNITS, units)
    shutil.copytree("/lib/systemd/system", tmp_path / "usr" / "lib" / "systemd" / "system", symlinks=True)
    program = tmp_path / "opt" / "changeover" / "bin" / "changeover"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh")
    program.chmod(0o755)
    names = [file.name.replace("@.", "@1.") for file in units.glob("*.service")]
    assert len(names) == 4
    analyze = ["systemd-analyze", f"--root={tmp_path}", "--man=no"]
    verified = subprocess.run(
        [*analyze, "--recursive-errors=one", "verify", *names], capture_output=True, text=True, check=False, timeout=60
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    for name in names:
        rated = [*analyze, "security", "--offline=yes", "--threshold=14", name]  # of 100; what is left is the network
        found = subprocess.run(rated, capture_output=True, text=True, check=False, timeout=60)
        assert found.returncode == 0, found.stdout[-300:]


def test_each_unit_has_its_own_secrets_and_a_folder_where_nothing_lies() -> None:
    for file in UNITS.glob("*.service"):
        text, part = file.read_text(), file.name.removeprefix("changeover-").partition(".")[0].rstrip("@")
        secrets = re.findall(r"^LoadCredential=(\S+):/etc/changeover/secrets/\1$", text, re.MULTILINE)
        assert [secret for secret in secrets if secret.startswith("redis-")] == [f"redis-{part}"]
        assert f"Environment=CHANGEOVER_REDIS_PASSWORD_FILE=%d/redis-{part}\n" in text
        folder = re.search(r"^RuntimeDirectory=(\S+)$", text, re.MULTILINE)
        assert folder is not None and f"WorkingDirectory=%t/{folder[1]}\n" in text
        assert f"ExecStart=/opt/changeover/bin/changeover {part}" in text
        grace = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
        assert grace is not None and int(grace[1]) >= int(SERVICES[part]["stop_grace_period"].rstrip("s"))


# -- the entrance ------------------------------------------------------------------------------------------------------


class Inside(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked for, and its cookies in a header."""

    def do_GET(self) -> None:
        cookies = self.headers.get_all("Cookie")
        said = f"{self.path} {self.headers.get('X-Forwarded-Proto')} {self.headers.get('X-Forwarded-For')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.send_header("X-Cookies", "none" if cookies is None else repr(cookies))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def entrance(tmp_path: Path, inside: int) -> Iterator[tuple[int, int, ssl.SSLContext]]:
    """HAProxy with our file, but for addresses: its port, that of its health, and how to trust it."""
    certificates = Certificates.make(tmp_path / "tls")
    pem = tmp_path / "tls.pem"
    pem.write_text(certificates.certificate.read_text() + certificates.key.read_text())
    outer, health = free_port(), free_port()
    text = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()
    here = {"/run/secrets/tls.pem": str(pem), "bind :8443": f"bind {HOST}:{outer}", "8404": str(health)}
    for was, now in {
        **here,
        "flower:5555": f"{HOST}:{inside}",
        "8 api:8088": f"1 {HOST}:{inside}",
        "grafana:3000": f"{HOST}:{inside}",
    }.items():
        assert was in text
        text = text.replace(was, now)
    (tmp_path / "haproxy.cfg").write_text(text)
    with (tmp_path / "log").open("wb") as log:
        haproxy = bundled_binary()
        argv = [haproxy, "-db", "-f", str(tmp_path / "haproxy.cfg")]
        process = subprocess.Popen(argv, env=environment(haproxy), stdout=log, stderr=log)
    try:
        wait_for("HAProxy", lambda: ask(f"http://{HOST}:{health}/healthz")[0] == 200)
        yield outer, health, ssl.create_default_context(cafile=str(certificates.ca))
    finally:
        process.kill()
        process.wait()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None: ...


def ask(url: str, trust: ssl.SSLContext | None = None, **headers: str) -> tuple[int, str, Any]:
    https = urllib.request.HTTPSHandler(context=trust)
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.build_opener(https, NoRedirect).open(request, timeout=10) as found:
            return found.status, found.read().decode(), found.headers
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode(), answer.headers


COOKIES = {  # what a browser sends, and what of it is for Flower and Grafana
    "changeover=secret": "none",
    "__Host-changeover=secret": "none",
    "__Host-changeover=secret; changeover=secret": "none",
    "changeover=secret; grafana_session=a": "['grafana_session=a']",
    "grafana_session=a; changeover=secret": "['grafana_session=a']",
    "a=1; __Host-changeover=secret; b=2;changeover=secret;  changeover =secret": "['a=1; b=2']",
    "not-changeover=1; changeover-too=2; c=changeover=": "['not-changeover=1; changeover-too=2; c=changeover=']",
}


def test_nobody_behind_the_entrance_is_shown_the_cookie_of_the_fleet_page_but_the_page(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer((HOST, 0), Inside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with entrance(tmp_path, server.server_port) as (port, _, trust):

            def shown(path: str, **headers: str) -> str:
                return str(ask(f"https://{HOST}:{port}{path}", trust, **headers)[2].get("X-Cookies", ""))

            def there(path: str) -> bool:
                return shown(path) != ""

            for path in ("/flower/tasks", "/grafana/d/changeover", "/"):
                wait_for(path, partial(there, path))
                assert shown(path) == "none"
                for sent, kept in COOKIES.items():
                    assert shown(path, Cookie=sent) == (kept if path != "/" else repr([sent])), (path, sent)
    finally:
        server.shutdown()
        server.server_close()


def test_the_entrance_speaks_tls_leads_to_api_and_flower_and_hides_what_needs_no_password(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer((HOST, 0), Inside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with entrance(tmp_path, server.server_port) as (port, _, trust):
            here = f"https://{HOST}:{port}"
            wait_for("Flower behind it", lambda: ask(f"{here}/flower/tasks", trust)[0] == 200)
            forged = {"X-Forwarded-For": "10.9.9.9", "X-Forwarded-Proto": "http"}
            _, said, headers = ask(f"{here}/flower/tasks", trust, **forged)
            assert said == f"/flower/tasks https {HOST}"
            assert headers["Strict-Transport-Security"]
            status, _, headers = ask(f"{here}/flower", trust)
            assert (status, headers["Location"]) == (302, "/flower/")
            status, _, headers = ask(f"{here}/grafana", trust)
            assert (status, headers["Location"]) == (302, "/grafana/")
            wait_for("Grafana behind it", lambda: ask(f"{here}/grafana/d/changeover", trust)[0] == 200)
            hidden = ("/metrics", "/flower/metrics", "/flower/healthcheck", "/grafana/metrics", "/grafana/%6detrics")
            assert {path: ask(here + path, trust)[0] for path in hidden} == dict.fromkeys(hidden, 404)
            wait_for("the API behind it", lambda: ask(f"{here}/v1/rollouts", trust)[0] == 200)
            assert ask(f"{here}/v1/rollouts?x=1", trust)[1].startswith("/v1/rollouts?x=1 https")
            with pytest.raises((urllib.error.URLError, OSError)):
                ask(f"http://{HOST}:{port}/flower/tasks")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.debian
def test_every_lock_can_be_audited() -> None:
    """What `make audit` does before it asks PyPI: each version that is named, with its hash, and nothing else."""
    locks = [word for lock in sorted((ROOT / "requirements").glob("*.txt")) for word in ("-r", str(lock))]
    done = subprocess.run(
        [validator("pip-audit"), "--dry-run", "--strict", "--require-hashes", "--disable-pip", *locks],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    packages = re.search(r"would have audited (\d+) packages", done.stderr)
    assert packages is not None and int(packages[1]) > 100, done.stderr
