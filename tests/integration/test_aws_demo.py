"""`changeover demo --cloud aws`: told from the beginning to the end, and never to the real AWS."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import build
from orchestrator.demo import aws, story
from orchestrator.demo.aws import AwsScene, cut_off, family
from orchestrator.demo.screen import Screen

MINE = {  # what a person who works with AWS has around
    "AWS_ACCESS_KEY_ID": "AKIAOFAREALPERSON000",
    "AWS_SECRET_ACCESS_KEY": "of-a-real-person",
    "AWS_SESSION_TOKEN": "of-a-real-session",
    "AWS_PROFILE": "production",
    "AWS_ROLE_ARN": "arn:aws:iam::333333333333:role/admin",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class _Trap(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.caught.append(self.client_address)  # type: ignore[attr-defined] # which this one has


@contextmanager
def trap() -> Iterator[tuple[str, list[Any]]]:
    """An address that stands for all of the real AWS, and for the way there; and who came."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Trap) as server:
        server.caught = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", server.caught  # type: ignore[attr-defined]
        server.shutdown()


def test_no_key_profile_address_or_proxy_of_the_environment_is_left() -> None:
    there = {**MINE, "AWS_ENDPOINT_URL_EC2": "https://ec2.example", "https_proxy": "http://proxy:1", "PATH": "/bin"}
    cut_off(there, "http://127.0.0.1:1")
    left = {name: value for name, value in there.items() if value in {*MINE.values(), "http://proxy:1"}}
    assert left == {}
    assert {name for name in there if name.startswith("AWS_ENDPOINT")} == {"AWS_ENDPOINT_URL"}
    assert there["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert there["PATH"] == "/bin"


def test_a_process_of_that_environment_finds_credentials_that_are_nobodys() -> None:
    there = {**os.environ, **MINE}
    cut_off(there, "http://127.0.0.1:1")
    program = (
        "import boto3; s = boto3.Session(); c = s.get_credentials(); e = s.client('ec2', 'eu-west-1');"
        "print(c.access_key, c.token, e.meta.endpoint_url)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=there, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["AKIAEXAMPLEEXAMPLE00", "None", "http://127.0.0.1:1"]


def test_without_its_packages_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "PACKAGES", ("boto3", "no_such_package"))
    done = CliRunner().invoke(build("demo"), ["demo", "--cloud", "aws"])
    assert done.exit_code != 0
    assert "needs no_such_package" in str(done.exception)
    assert "pip install 'changeover[local,simcloud]'" in str(done.exception)


def test_calls_are_told_by_their_kind() -> None:
    told = [family(call) for call in ("ec2:DescribeInstances", "elbv2:RegisterTargets", "ssm:SendCommand")]
    assert told == ["EC2 looks", "ELBv2 changes", "SSM commands"]


@pytest.mark.timeout(900)
def test_a_small_one_is_told_to_its_end_and_asks_no_other_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "BEFORE", 1.0)
    monkeypatch.setattr(story, "AFTER", 1.0)
    monkeypatch.setattr(story, "PATIENCE", 500.0)
    with trap() as (elsewhere, caught), pytest.MonkeyPatch.context() as there:
        for name, value in {**MINE, "AWS_ENDPOINT_URL": elsewhere, "HTTP_PROXY": elsewhere}.items():
            there.setenv(name, value)
        before = dict(os.environ)
        said: list[str] = []
        scene = partial(AwsScene, accounts={"111111111111": 2, "222222222222": 2}, rate=20)
        told = story.Story(results=tmp_path, screen=Screen(said.append), scene=scene, bad="web-003")
        try:
            code = told.run(keep=False)
        finally:
            os.environ.clear()
            os.environ.update(before)
        assert caught == [], "nobody has asked the AWS that the environment names"
    seen = json.loads((tmp_path / "load.json").read_text())
    assert code == 0, (said[-20:], seen["reasons"], (tmp_path / "aws.log").read_text()[-1000:])
    assert seen["requests"] > 0 == seen["failed"]
    calls = json.loads((tmp_path / "calls.json").read_text())
    assert {"EC2 looks", "EC2 changes", "ELBv2 looks", "ELBv2 changes", "SSM commands", "STS roles"} <= set(calls)
    assert sum(row["lost"] + row["refused"] for row in calls.values()) > 0, "it had faults to overcome"
    assert any("kill -9" in line for line in said)
    assert any("set aside" in line and "web-003" in line for line in said)
