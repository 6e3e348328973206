"""Webhooks over a real socket: signed by openssl and by nobody, once and a thousand times; and as their page says."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from orchestrator import hook_file
from orchestrator.api.hooks import AT_ONCE, MOST
from orchestrator.api.problems import KINDS, MEDIA, PREFIX
from orchestrator.api.routes import Api
from orchestrator.domain.signatures import standard, standard_key, verified
from orchestrator.hooks import Carrier
from tests.integration.test_api_command import as_file, serving
from tests.support.api import Served, served
from tests.support.control_plane import control_plane
from tests.support.redis_servers import wait_for
from tests.unit.test_hooks import KEYS, NOW, READY, SECRET, SHARED, STAMP, written
from tests.unit.test_notify import Receiver, receiver
from tests.unit.test_notify import written as to_be_told

__all__ = ["receiver"]  # a fixture

PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"
CHANGEOVER = [sys.executable, "-P", "-c", "import sys; from orchestrator.cli import main; sys.exit(main())"]


@pytest.fixture
def api(door: tuple[str, Api], tmp_path: Path) -> Iterator[Served]:
    """With hooks, which one thread carries out."""
    with served(*door) as found:
        carrier = Carrier(store=found.store, ask=found.world, hooks=hook_file.load(written(tmp_path)))
        found.api.carrier = carrier
        thread = threading.Thread(target=carrier.run)
        thread.start()
        try:
            yield found
        finally:
            carrier.end()
            thread.join(60)
            assert not thread.is_alive()


def signed(body: bytes, *, id: str = "msg_1", at: int = NOW) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": standard(id, str(at), body, KEYS[0]),
    }


def ended(api: Served, id: str) -> dict[str, Any]:
    def now() -> dict[str, Any]:
        found: dict[str, Any] = api.http.get(f"/v1/deliveries/{id}").json()["delivery"]
        return found

    wait_for("the delivery", lambda: now()["state"] != "waiting", seconds=60)
    return now()


def test_what_openssl_signs_on_the_command_line_starts_a_rollout(api: Served) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl is installed")
    body = json.dumps(READY).encode()
    line = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{KEYS[0].hex()}", "-binary"]
    mac = subprocess.run(line, input=b"msg_1.%d." % NOW + body, capture_output=True, check=True).stdout
    headers = {**signed(b""), "webhook-signature": "v1," + base64.b64encode(mac).decode()}
    answer = api.client().post("/hooks/releases", content=body, headers=headers)
    assert (answer.status_code, answer.json()["state"], answer.json()["again"]) == (202, "waiting", False)
    done = ended(api, answer.json()["delivery"])
    assert done["state"] == "done"
    assert [rollout.id for rollout in api.store.rollouts()] == [done["rollout"]]


def test_an_event_of_github_is_taken_and_of_its_ping_nothing_follows(api: Served) -> None:
    import hashlib
    import hmac

    def post(event: str, payload: Any) -> httpx2.Response:
        body = json.dumps(payload).encode()
        mac = hmac.new(SHARED.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={mac}", "X-GitHub-Delivery": "7-a", "X-GitHub-Event": event}
        return api.client().post("/hooks/code", content=body, headers={"Content-Type": "application/json", **headers})

    assert post("ping", {"zen": "Design for failure."}).json()["state"] == "ignored"
    begun = post("deployment", {"deployment": {"environment": "production", "updated_at": STAMP}}).json()
    assert ended(api, begun["delivery"])["state"] == "done"
    assert len(api.store.rollouts()) == 1


def test_a_hundred_replays_at_once_start_one_rollout(api: Served) -> None:
    body = json.dumps(READY).encode()
    headers, client = signed(body), api.client()
    with ThreadPoolExecutor(16) as pool:
        posts = [pool.submit(client.post, "/hooks/releases", content=body, headers=headers) for _ in range(100)]
        answers = [post.result() for post in posts]
    assert {answer.status_code for answer in answers} == {202}
    assert sum(not answer.json()["again"] for answer in answers) == 1
    (id,) = {answer.json()["delivery"] for answer in answers}
    assert ended(api, id)["state"] == "done"
    assert len(api.store.rollouts()) == 1
    assert len(api.http.get("/v1/deliveries").json()["deliveries"]) == 1


def test_every_reason_for_which_a_delivery_is_not_believed_looks_the_same(api: Served) -> None:
    body = json.dumps(READY).encode()
    good, client = signed(body), api.client()
    without = [{name: value for name, value in good.items() if name != gone} for gone in list(good)[1:]]
    tries: list[tuple[str, bytes, Any]] = [
        *(("releases", body, headers) for headers in without),
        ("releases", body + b"\n", good),
        ("releases", b"", good),
        ("releases", b"[" * 10_000, good),
        ("releases", body, signed(body, at=NOW - 301)),
        ("releases", body, signed(body, at=NOW + 301)),
        ("releases", body, [*good.items(), ("webhook-id", "msg_1")]),
        ("releases", body, [*good.items(), ("webhook-signature", good["webhook-signature"])]),
        ("releases", body, {**good, "webhook-signature": "v1,"}),
        ("releases", body, {**good, "webhook-signature": good["webhook-signature"].replace("v1,", "sha256=")}),
        ("releases", body, {**good, "Content-Type": "text/plain", "webhook-id": "other"}),
        ("code", body, good),
        ("nobody", body, good),
        ("..%2fv1%2frollouts", body, good),
        ("%00", body, good),
    ]
    answers = [client.post(f"/hooks/{name}", content=content, headers=headers) for name, content, headers in tries]
    assert {answer.status_code for answer in answers[:-2]} == {401}
    assert {answer.status_code for answer in answers[-2:]} <= {401, 404}
    (told,) = {answer.text for answer in answers if answer.status_code == 401}
    assert json.loads(told)["type"] == f"{PREFIX}unsigned" and KINDS["unsigned"][0] == 401
    assert {answer.headers["content-type"] for answer in answers} == {MEDIA}
    api.api.carrier = None
    assert client.post("/hooks/releases", content=body, headers=good).text == told, "as where no hooks are"
    assert api.store.deliveries() == [] and api.store.rollouts() == []


def begun(api: Served, headers: dict[str, str]) -> socket.socket:
    """The head of a delivery, whose body does not follow."""
    url = httpx2.URL(api.url)
    opened = socket.create_connection((url.host, url.port or 0), timeout=10)  # less than a body is waited for
    lines = [f"{name}: {value}\r\n" for name, value in {"Host": "x", "Content-Length": "100", **headers}.items()]
    opened.sendall(f"POST /hooks/releases HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
    return opened


def test_what_is_signed_by_nobody_is_refused_before_its_body_is_there(api: Served) -> None:
    good = signed(b"")
    for headers in ({}, {**good, "webhook-timestamp": "now"}, {**good, "webhook-signature": "v1,AAAA"}):
        with begun(api, headers) as opened:
            assert opened.recv(1000).startswith(b"HTTP/1.1 401"), headers
    api.api.carrier = None
    with begun(api, good) as opened:
        assert opened.recv(1000).startswith(b"HTTP/1.1 401"), "as where no hooks are"


def test_as_few_bodies_are_in_memory_as_may_be_nobodys_and_none_is_large(api: Served) -> None:
    body = json.dumps(READY).encode()
    opened = [begun(api, signed(b"")) for _ in range(AT_ONCE)]
    wait_for("their heads", lambda: api.api.unsigned == AT_ONCE, seconds=15)
    answer = api.client().post("/hooks/releases", content=body, headers=signed(body))
    assert (answer.status_code, answer.json()["retryable"]) == (429, True)
    for each in opened:
        each.close()
    wait_for("their end", lambda: api.api.unsigned == 0, seconds=15)
    large = body + b" " * (MOST - len(body))
    assert api.client().post("/hooks/releases", content=large, headers=signed(large)).status_code == 202
    larger = large + b" "
    refused = api.client().post("/hooks/releases", content=larger, headers=signed(larger, id="msg_2"))
    assert (refused.status_code, "256 KiB are the most" in refused.json()["detail"]) == (413, True)
    assert api.api.unsigned == 0


def test_what_is_signed_and_makes_no_sense_is_refused_and_not_kept(api: Served) -> None:
    for body, status in ((b"", 400), (b"{", 400), (b'{"a": 1, "a": 2}', 400), (b"[" * 10_000, 400), (b"\xff", 400)):
        assert api.client().post("/hooks/releases", content=body, headers=signed(body)).status_code == status, body[:9]
    body = json.dumps(READY).encode()
    form = {**signed(body), "Content-Type": "application/x-www-form-urlencoded"}
    assert api.client().post("/hooks/releases", content=body, headers=form).status_code == 415
    assert api.client().get("/hooks/releases").status_code == 405
    assert api.store.deliveries() == []


def test_a_delivery_is_answered_though_no_worker_answers(api: Served) -> None:
    api.world.mute = lambda: None
    body = json.dumps(READY).encode()
    began = time.monotonic()
    answer = api.client().post("/hooks/releases", content=body, headers=signed(body))
    assert answer.status_code == 202 and time.monotonic() - began < 5, "and not after a worker was waited for"
    assert api.store.rollouts() == []


def test_too_many_that_wait_are_to_be_sent_again(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.memory.MOST_WAITING", 0)
    body = json.dumps(READY).encode()
    answer = api.client().post("/hooks/releases", content=body, headers=signed(body))
    assert (answer.status_code, answer.json()["retryable"]) == (429, True)


def test_the_log_is_paged_filtered_and_carried_out_again_by_who_may(api: Served) -> None:
    ids = []
    for n in range(5):
        body = json.dumps({"type": f"other.{n}"} if n else READY).encode()
        found = api.client().post("/hooks/releases", content=body, headers=signed(body, id=f"msg_{n}")).json()
        ids.append(found["delivery"])
        api.clock.now += 1
    ended(api, ids[0])
    pages: list[str] = []
    path: str | None = "/v1/deliveries?limit=2"
    while path is not None:
        answer = api.http.get(path)
        pages += [each["id"] for each in answer.json()["deliveries"]]
        path = answer.links["next"]["url"] if "link" in answer.headers else None
    assert pages == ids[::-1]
    done = api.http.get("/v1/deliveries?state=done&hook=releases").json()["deliveries"]
    assert [each["id"] for each in done] == ids[:1]
    assert api.http.get("/v1/deliveries?cursor=d9").status_code == 422
    again = api.http.post(f"/v1/deliveries/{ids[0]}:redeliver")
    assert (again.status_code, again.json()["changed"]) == (200, True)
    assert ended(api, ids[0])["state"] == "done" and len(api.store.rollouts()) == 1
    body = json.dumps({"type": "release.tested"}).encode()
    yes = api.client().post("/hooks/releases", content=body, headers=signed(body, id="msg_yes")).json()["delivery"]
    ended(api, yes)
    refused = api.http.post(f"/v1/deliveries/{yes}:redeliver")
    assert (refused.status_code, refused.json()["type"]) == (409, f"{PREFIX}conflict")
    assert "its sender can send another" in refused.json()["detail"]
    for path in ("/v1/deliveries/d9", "/v1/deliveries/d9:redeliver"):
        assert (api.http.get(path) if path.endswith("d9") else api.http.post(path)).status_code == 404
    reader, part = api.client(api.token("read")), api.client(api.token("run", "read", fleets=("shop",)))
    assert reader.get("/v1/deliveries").status_code == 200
    assert reader.post(f"/v1/deliveries/{ids[0]}:redeliver").status_code == 403
    assert part.get("/v1/deliveries").status_code == part.get(f"/v1/deliveries/{ids[0]}").status_code == 403
    assert part.post(f"/v1/deliveries/{ids[0]}:redeliver").status_code == 403


def test_the_page_holds_by_curl_and_openssl_and_what_begins_is_told(tmp_path: Path, receiver: Receiver) -> None:
    if shutil.which("curl") is None or shutil.which("openssl") is None:
        pytest.skip("no curl or no openssl is installed")
    page = PAGE.read_text()
    file, workflow, *_ = (part.partition("```")[0] for part in page.split("```yaml\n")[1:])
    (script,) = (part.partition("```")[0] for part in page.split("```sh\n")[1:])
    (job,) = yaml.safe_load(workflow)["jobs"].values()
    (step,) = job["steps"]
    with control_plane(tmp_path, workers=1, notify=to_be_told(tmp_path, receiver.url)) as plane:
        run = plane.fleet(servers=2)
        secret = subprocess.run([*CHANGEOVER, "hooks", "secret"], capture_output=True, text=True, check=True).stdout
        (tmp_path / "releases.secret").write_text(secret)
        (tmp_path / "github.secret").write_text("0123456789abcdef")
        (tmp_path / "shop.yaml").write_text(as_file(run.fleet))
        (tmp_path / "hooks.yaml").write_text(file)
        hooks = ("--hooks", str(tmp_path / "hooks.yaml"))
        with serving(plane.supervisor.redis_url, tmp_path / "api", *hooks) as (_, where):

            def bash(script: str, **more: str) -> Any:
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", script],
                    cwd=tmp_path,
                    env={**os.environ, **more},
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert done.returncode == 0, done.stderr + done.stdout
                return json.loads(done.stdout)

            begun = bash(script.replace("http://127.0.0.1:8088", where))
            again = bash(step["run"], URL=where, SECRET=secret.strip(), ID="release-17")
            wait_for("the rollout", lambda: len(plane.store.rollouts()) == 1, seconds=60)
            plane.until("its being told", lambda: bool(receiver.heard))
        assert (begun["again"], again["again"], again["delivery"]) == (False, True, begun["delivery"])
        (rollout,) = plane.store.rollouts()
        headers, told = receiver.heard[0]
        assert verified("standard", headers, told, [standard_key(SECRET)], now=time.time()) is not None
        assert (receiver.events()[0], json.loads(told)["data"]["rollout"]) == ("created", rollout.id)
        assert rollout.created_by == f"webhook releases ({begun['delivery']})"
        spec = plane.store.document("spec", rollout.id)
        assert spec is not None and spec["plan"]["fleet"]["target"]["size"]["disk"] == f"{2 << 30}B"
