"""Webhooks that come in: whose signature counts, which rule is followed, and what comes of a delivery whatever dies."""

from __future__ import annotations

import base64
import copy
import hmac
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from orchestrator import hook_file, hooks, operations
from orchestrator.domain.delivery import GIVE_UP, IN_HAND, Delivery
from orchestrator.domain.hooks import Hook, HookFile, at, fitting, too_old
from orchestrator.domain.rollout import Approval, Become, Rollout, decide
from orchestrator.domain.signatures import SHORTEST_KEY, WINDOW, Signed, standard, standard_key, verified
from orchestrator.errors import BadInput, Conflict, NotFound, Unreachable
from orchestrator.hook_file import Hooks
from orchestrator.operations import Waiter
from orchestrator.store import Entry
from orchestrator.store.memory import MemoryStore
from tests.unit.test_cli import Place, place
from tests.unit.test_operations import FLEET, Clock, World

__all__ = ["place"]  # a fixture

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OLDER = "whsec_" + base64.b64encode(bytes(range(1, 25))).decode()
SHARED = "it is a secret to everybody"
FILE = """\
version: 1
hooks:
  releases:
    scheme: standard
    secrets: [release.secret, older.secret]
    rules:
      - when: {/type: release.ready, /data/environment: production}
        start: {fleet_file: shop.yaml, set: {target.size.disk: /data/disk}}
      - when: {/type: release.planned}
        start: {fleet: shop, plan: /data/plan}
      - when: {/type: release.recalled}
        abort: {fleet: shop, why: /data/reason}
      - when: {/type: release.doubted}
        pause: {fleet: shop, rollout: /data/rollout}
      - when: {/type: release.agreed}
        approve: {fleet: shop, who: /data/who}
      - when: {/type: release.tested}
        approve: {fleet: shop}
  code:
    scheme: github
    secrets: [github.secret]
    rules:
      - event: deployment
        when: {/deployment/environment: production}
        start: {fleet_file: shop.yaml}
      - event: workflow_run
        when: {/action: completed, /workflow_run/conclusion: failure}
        pause: {fleet: shop, why: /workflow_run/html_url}
      - event: release
        when: {/action: deleted, /release/prerelease: false}
        abort: {fleet: shop}
"""
READY = {"type": "release.ready", "data": {"environment": "production", "disk": "2GiB"}}
NOW = 1_700_000_000
STAMP = "2023-11-14T22:13:20Z"  # the same


def written(folder: Path, text: str = FILE) -> Path:
    (folder / "release.secret").write_text(SECRET + "\n")
    (folder / "older.secret").write_text(OLDER)
    (folder / "github.secret").write_text(SHARED + "\n")
    (folder / "shop.yaml").write_text(FLEET)
    (folder / "hooks.yaml").write_text(text)
    return folder / "hooks.yaml"


# -- signatures --------------------------------------------------------------------------------------------------------

KEYS = (standard_key(SECRET), standard_key(OLDER))


def headers(body: bytes, *, id: str = "msg_1", at: int = NOW, key: bytes = KEYS[0]) -> dict[str, str]:
    return {"webhook-id": id, "webhook-timestamp": str(at), "webhook-signature": standard(id, str(at), body, key)}


def counts(body: bytes, given: dict[str, str], *, now: float = NOW) -> bool:
    return verified("standard", given, body, KEYS, now=now) is not None


def test_what_openssl_signs_counts_and_what_is_signed_here_openssl_signs_alike() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl is installed")
    body = b'{"type": "release.ready"}'

    def mac(key: bytes, text: bytes) -> bytes:
        line = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}", "-binary"]
        return subprocess.run(line, input=text, capture_output=True, check=True).stdout

    theirs = "v1," + base64.b64encode(mac(KEYS[0], b"msg_1.%d." % NOW + body)).decode()
    assert theirs == standard("msg_1", str(NOW), body, KEYS[0])
    given = {**headers(body), "webhook-signature": theirs}
    assert verified("standard", given, body, KEYS, now=NOW) == Signed(key="msg_1", event="", once="msg_1")
    hub = {
        "x-hub-signature-256": "sha256=" + mac(SHARED.encode(), body).hex(),
        "x-github-delivery": "72d3162e-cc78",
        "x-github-event": "deployment",
    }
    found = verified("github", hub, body, [b"k" * SHORTEST_KEY, SHARED.encode()], now=NOW)
    assert found is not None and (found.key, found.event) == ("72d3162e-cc78", "deployment")


def test_the_examples_of_those_who_made_the_schemes_count() -> None:
    # From the specification of Standard Webhooks and from GitHub's "Validating webhook deliveries".
    key = standard_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    id, at, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}'
    assert standard(id, at, body, key) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    given = {
        "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "x-github-delivery": "d",
        "x-github-event": "ping",
    }
    assert verified("github", given, b"Hello, World!", [b"It's a Secret to Everybody"], now=0) is not None


def test_either_of_two_secrets_counts_and_any_of_several_signatures() -> None:
    body = b"{}"
    assert counts(body, headers(body, key=KEYS[1]))
    both = headers(body)
    both["webhook-signature"] = "v1a,x v1,AAAA " + both["webhook-signature"]
    assert counts(body, both)


def test_whatever_is_not_as_it_was_signed_does_not_count() -> None:
    body = b'{"type": "x"}'
    good = headers(body)
    assert counts(body, good)
    assert not counts(body + b" ", good)
    assert not counts(b"", good)
    for name in good:
        assert not counts(body, {other: value for other, value in good.items() if other != name}), name
    other = {"webhook-id": "msg_2", "webhook-timestamp": str(NOW + 1), "webhook-signature": "v1,"}
    for name, value in other.items():
        assert not counts(body, {**good, name: value}), name
    signature = good["webhook-signature"]
    for wrong in (signature[3:], signature.upper(), "v2" + signature[2:], signature + "=", "ü" + signature, " "):
        assert not counts(body, {**good, "webhook-signature": wrong}), wrong
    assert not counts(body, headers(body, key=b"another key of somebody"))
    for odd in ("", "a b", "ü", "x" * 256):
        assert not counts(body, headers(body, id=odd)), odd
    for odd in ("", "-1", "1e9", "٣", " 1", "9" * 13):
        given = {**good, "webhook-timestamp": odd, "webhook-signature": standard("msg_1", odd, body, KEYS[0])}
        assert not counts(body, given), odd
    hub = {"x-github-delivery": "d", "x-github-event": "ping"}
    for wrong in ("", "sha256=", "sha1=" + "0" * 40, "sha256=" + "0" * 64):
        given = {**hub, "x-hub-signature-256": wrong}
        assert verified("github", given, b"{}", [SHARED.encode()], now=0) is None


def test_every_name_takes_as_many_keys_whether_there_is_such_a_hook_or_not(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []
    digest = hmac.digest

    def counted(key: bytes, text: bytes, name: str) -> bytes:
        tried.append(key)
        return digest(key, text, name)

    monkeypatch.setattr(hmac, "digest", counted)
    now = int(desk.store.now())
    nobodys = {"x-github-delivery": "d", "x-github-event": "ping", "x-hub-signature-256": "sha256=" + "0" * 64}
    signed = headers(b"{}", at=now)
    for given, wanted in ((signed, 2), (nobodys, 2), ({**signed, **nobodys}, 4), ({**signed, "webhook-id": ""}, 0)):
        for name in ("releases", "code", "nobody"):
            tried.clear()
            found = hooks.verify(desk.store, desk.hooks, name, given, b"{}")
            assert (len(tried), found is not None) == (
                wanted,
                name == "releases" and given.get("webhook-id") == "msg_1",
            )
    stand_in = headers(b"{}", at=now, key=b"\x00" * 32)
    assert all(hooks.verify(desk.store, desk.hooks, name, stand_in, b"{}") is None for name in ("releases", "nobody"))


def test_a_signature_counts_for_five_minutes_before_and_after() -> None:
    body = b"{}"
    for age, so in ((0, True), (WINDOW, True), (-WINDOW, True), (WINDOW + 1, False), (-WINDOW - 1, False)):
        assert counts(body, headers(body), now=NOW + age) is so, age


@pytest.mark.parametrize("wrong", ["", "whsec_", "whsec_%%%%", SECRET[6:], "whsec_" + "QUFB" * 30, "whsec_ü"])
def test_a_secret_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        standard_key(wrong)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_hook_file_is_read_with_its_secrets_and_fleets(tmp_path: Path) -> None:
    found = hook_file.load(written(tmp_path))
    assert {name: len(known.keys) for name, known in found.known.items()} == {"releases": 2, "code": 1}
    assert found.fleets == {"shop.yaml": "shop"}
    assert SECRET not in repr(found) and repr(KEYS[0]) not in repr(found)


@pytest.mark.parametrize(
    ("was", "now", "place", "told"),
    [
        ("version: 1\n", "version: 2\n", "hooks.yaml:1: version", "wants 1"),
        ("scheme: standard", "scheme: slack", "hooks.yaml:4: hooks.releases.scheme", "standard or github"),
        ("[release.secret, older.secret]", "[]", "hooks.yaml:5: hooks.releases.secrets", "at least 1"),
        ("older.secret]", "gone.secret]", "hooks.yaml:5: hooks.releases.secrets[1]", "cannot be read"),
        ("[github.secret]", "[github.secret, empty]", "hooks.yaml:21: hooks.code.secrets[1]", "cannot be read"),
        ("[release.secret,", "[github.secret,", "hooks.yaml:5: hooks.releases.secrets[0]", "whsec_"),
        ("shop.yaml, set", "shpo.yaml, set", "hooks.releases.rules[0].start.fleet_file", "no such file"),
        ("target.size.disk", "target.size.dsik", "hooks.releases.rules[0].start.set", "nothing in a fleet file"),
        ("target.size.disk", "fleet", "hooks.releases.rules[0].start.set", "nothing in a fleet file"),
        ("/data/disk", "data.disk", "hooks.releases.rules[0].start.set", "JSON pointer"),
        ("/data/disk", "/data/disk~", "hooks.releases.rules[0].start.set", "JSON pointer"),
        ("abort: {fleet: shop, w", "cancel: {fleet: shop, w", "hooks.releases.rules[2]", "unknown key 'cancel'"),
        ("/type: release.recalled", "/type: [a]", "hooks.releases.rules[2].when", "to compare with"),
        ("/type: release.recalled", "/type: 1.5", "hooks.releases.rules[2].when", "to compare with"),
        ("{fleet: shop, plan: /data/plan}", "{plan: /data/plan}", "hooks.releases.rules[1].start", "say the fleet"),
        ("{fleet: shop, plan: /data/plan}", "{fleet: shop}", "hooks.releases.rules[1].start", "give one of"),
        ("event: deployment\n", "event: push\n", "hooks.code.rules[0].event", "deployment, workflow_run or release"),
        ("- event: release\n        when", "- when", "hooks.code.rules[2]", "event is wanted"),
        (
            "- when: {/type: release.d",
            "- event: release\n        when: {/type: release.d",
            "rules[3]",
            "GitHub's alone",
        ),
        ("- when: {/type: release.doubted}\n        p", "- p", "rules[3]", "when is wanted"),
        ("        pause: {fleet: shop, rollout", "        x: {fleet: shop, rollout", "hooks.releases.rules[3]", "x"),
    ],
)
def test_each_fault_of_a_hook_file_is_told_with_its_place(
    tmp_path: Path, was: str, now: str, place: str, told: str
) -> None:
    assert FILE.count(was) >= 1
    with pytest.raises(BadInput) as refused:
        hook_file.load(written(tmp_path, FILE.replace(was, now, 1)))
    assert place in str(refused.value) and told in str(refused.value), str(refused.value)


def test_two_verbs_in_one_rule_are_refused(tmp_path: Path) -> None:
    text = FILE.replace("pause: {fleet: shop, rollout", "abort: {fleet: shop}\n        pause: {fleet: shop, rollout")
    with pytest.raises(BadInput, match=r"one of start, approve, pause and abort"):
        hook_file.load(written(tmp_path, text))


# -- rules -------------------------------------------------------------------------------------------------------------


def test_a_place_in_a_payload_is_a_plain_value_or_nothing() -> None:
    payload = {"a": {"b/c": [1, {"~": "x"}], "n": None, "t": True, "": 0}, "0": "zero"}
    assert at(payload, "/a/b~1c/1/~0") == "x"
    assert at(payload, "/a/b~1c/0") == 1
    assert (at(payload, "/a/n"), at(payload, "/a/t"), at(payload, "/a/"), at(payload, "/0")) == (None, True, 0, "zero")
    for gone in (
        "/b",
        "/a/b~1c/2",
        "/a/b~1c/-",
        "/a/b~1c/00",
        "/a/b~1c/-1",
        "/a",
        "/a/b~1c",
        "/a/t/x",
        "/a/n/x",
        "/0/0",
    ):
        with pytest.raises(Exception, match=gone):
            at(payload, gone)


def hook(**given: Any) -> Hook:
    data = {"version": 1, "hooks": {"h": {"scheme": "standard", "secrets": ["s"], **given}}}
    return HookFile.model_validate_json(json.dumps(data)).hooks["h"]


def test_the_first_rule_is_followed_of_which_everything_is_so() -> None:
    stop = {"fleet": "shop"}
    found = hook(
        rules=[
            {"when": {"/n": 1, "/t": True}, "abort": stop},
            {"when": {"/n": True}, "pause": stop},
            {"when": {"/none": None}, "pause": stop},
            {"when": {"/n": 1}, "pause": stop},
        ]
    )
    verbs = {
        '{"n": 1, "t": true}': "abort",
        '{"n": 1, "t": 1}': "pause",
        '{"n": true}': "pause",
        '{"none": null}': "pause",
        '{"n": "1"}': None,
        "{}": None,
        "[]": None,
        "3": None,
    }
    for payload, verb in verbs.items():
        rule = fitting(found, "", json.loads(payload))
        assert (rule.verb if rule else None) == verb, payload


def test_an_event_of_github_is_followed_for_three_days() -> None:
    def said(value: Any) -> str:
        return too_old("deployment", {"deployment": {"updated_at": value}}, now=NOW)

    assert said(STAMP) == said("2023-11-11T22:13:21Z") == said("2023-11-14T23:13:20+01:00") == ""
    for odd in (None, "", "yesterday", 5, "2023-11-14T22:13:20", "2023-11-11T22:13:19Z", "2023-11-14T22:20:00Z"):
        assert said(odd), odd
    assert too_old("release", {"release": {"published_at": None}}, now=NOW)


# -- deliveries --------------------------------------------------------------------------------------------------------


class Desk:
    """A store in memory, a world that answers at once, and the hooks of `FILE`."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        self.world = World(self.store)
        self.hooks: Hooks = hook_file.load(written(folder))
        self.sent = 0

    def came(self, payload: Any, *, name: str = "releases", event: str = "", once: str = "") -> Delivery:
        self.sent += 1
        key = once or f"msg_{self.sent}"
        found = hooks.receive(self.store, self.hooks, name, Signed(key=key, event=event, once=key), payload)
        assert found is not None and found.delivery is not None
        self.clock.now += 0.001
        return found.delivery

    def carry(self) -> None:
        for taken in hooks.take(self.store, self.hooks, most=99):
            hooks.carry_out(self.store, self.world, self.hooks, taken, Waiter(timeout=0, every=0.001))

    def now(self, delivery: Delivery) -> Delivery:
        found = self.store.delivery(delivery.id)
        assert found is not None
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    return Desk(tmp_path)


def test_a_start_is_carried_out_with_values_of_the_payload(desk: Desk) -> None:
    waiting = desk.came(READY)
    assert (waiting.state, waiting.verb, waiting.fleet, desk.store.rollouts()) == ("waiting", "start", "shop", [])
    desk.carry()
    (rollout,) = desk.store.rollouts()
    assert rollout.id == waiting.rollout
    assert rollout.created_by == f"webhook releases ({waiting.id})"
    plan = operations.saved_plan(desk.store, rollout.plan)
    assert plan.fleet["target"]["size"]["disk"] == f"{2 << 30}B"
    ended = desk.now(waiting)
    assert (ended.state, ended.why, ended.due) == ("done", f"rollout {rollout.id} of shop was started", None)


def test_a_start_of_a_plan_carries_out_what_was_agreed(desk: Desk) -> None:
    from orchestrator import fleet_file

    plan = operations.plan(desk.store, desk.world, fleet_file.read(FLEET, name="f")).id
    asked = desk.came({"type": "release.planned", "data": {"plan": plan}})
    desk.carry()
    assert desk.now(asked).why.endswith("of shop was started")
    assert [rollout.plan for rollout in desk.store.rollouts()] == [plan]


def test_a_plan_of_another_fleet_is_not_started(desk: Desk) -> None:
    from orchestrator import fleet_file

    other = fleet_file.read(FLEET.replace("fleet: shop", "fleet: bank"), name="f")
    for plan in (operations.plan(desk.store, desk.world, other).id, "none"):
        refused = desk.came({"type": "release.planned", "data": {"plan": plan}})
        desk.carry()
        assert desk.now(refused).state == "failed"
    assert desk.store.rollouts() == []


@pytest.mark.parametrize(
    ("disk", "told"),
    [
        (None, "no plain value at /data/disk"),
        ({"a": 1}, "no plain value"),
        ("2GB", "target.size.disk: write a size with its unit"),
        ("{{7*7}}", "write a size"),
        (5, "write a size"),
        ("x" * 5000, "write a size"),
    ],
)
def test_a_value_that_a_fleet_file_could_not_say_starts_nothing(desk: Desk, disk: Any, told: str) -> None:
    payload = copy.deepcopy(READY) | {"data": {"environment": "production", "disk": disk}}
    refused = desk.came(payload)
    desk.carry()
    assert (desk.now(refused).state, desk.store.rollouts()) == ("failed", [])
    assert told in desk.now(refused).why


def test_what_comes_twice_is_done_once_and_known_though_the_log_has_forgotten_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = desk.came(READY, once="m")
    assert desk.came(READY, once="m") == first
    desk.carry()
    assert desk.came(READY, once="m").state == "done"
    monkeypatch.setattr("orchestrator.store.memory.DELIVERIES", 1)
    desk.came({"type": "other"})
    assert desk.store.delivery(first.id) is None
    signed = Signed(key="m", event="", once="m")
    again = hooks.receive(desk.store, desk.hooks, "releases", signed, READY)
    assert again is not None and (again.id, again.delivery, again.again) == (first.id, None, True)
    desk.carry()
    assert len(desk.store.rollouts()) == 1


def test_a_thousand_replays_at_once_start_one_rollout(desk: Desk) -> None:
    body = json.dumps(READY).encode()
    given = headers(body)

    def come(_: int) -> str:
        signed = hooks.verify(desk.store, desk.hooks, "releases", given, body)
        assert signed is not None
        found = hooks.receive(desk.store, desk.hooks, "releases", signed, READY)
        assert found is not None
        desk.carry()
        return found.id

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(come, range(1000)))) == 1
    assert len(desk.store.rollouts()) == len(desk.store.deliveries()) == 1


def test_what_no_rule_fits_is_kept_and_nothing_follows(desk: Desk) -> None:
    staging = {"type": "release.ready", "data": {"environment": "staging", "disk": "2GiB"}}
    assert [desk.came(payload).state for payload in (staging, {}, [], None, "x")] == ["ignored"] * 5
    old = {"deployment": {"environment": "production", "updated_at": "2020-01-01T00:00:00Z"}}
    ignored = desk.came(old, name="code", event="deployment")
    assert (ignored.state, "last 3 days" in ignored.why) == ("ignored", True)
    desk.carry()
    assert desk.store.rollouts() == []


def test_an_event_of_github_starts_pauses_and_aborts(desk: Desk) -> None:
    begun = {"deployment": {"environment": "production", "updated_at": STAMP}}
    desk.came(begun, name="code", event="deployment")
    desk.carry()
    (rollout,) = desk.store.rollouts()
    failed = {
        "action": "completed",
        "workflow_run": {"conclusion": "failure", "html_url": "https://x/1", "updated_at": STAMP},
    }
    desk.came(failed, name="code", event="workflow_run")
    desk.carry()
    now = operations.find(desk.store, rollout.id)
    assert (now.state, now.why) == ("paused", "https://x/1")
    gone = desk.came(
        {"action": "deleted", "release": {"prerelease": False, "published_at": STAMP}}, name="code", event="release"
    )
    desk.carry()
    assert operations.find(desk.store, rollout.id).state == "aborting"
    assert desk.now(gone).why == f"rollout {rollout.id} is aborting"
    entry = operations.events(desk.store, rollout.id)[-1]
    assert entry.actor == f"webhook code ({gone.id})"


def test_a_pause_of_one_rollout_is_only_of_one_of_its_fleet(desk: Desk) -> None:
    desk.came(READY)
    desk.carry()
    (rollout,) = desk.store.rollouts()
    unknown = desk.came({"type": "release.doubted", "data": {"rollout": "r9"}})
    desk.carry()
    assert (desk.now(unknown).state, operations.find(desk.store, rollout.id).state) == ("failed", "running")
    desk.came({"type": "release.doubted", "data": {"rollout": rollout.id}})
    desk.carry()
    assert operations.find(desk.store, rollout.id).state == "paused"


def test_a_wave_is_approved_by_the_hook_or_by_whom_the_payload_names(desk: Desk, tmp_path: Path) -> None:
    asks = "  waves: [1, rest]\n  approvals: [{before: 1, count: 2, by: [anna, releases]}]\n"
    (tmp_path / "shop.yaml").write_text(FLEET.replace("  waves: [1, rest]\n", asks))
    early = desk.came({"type": "release.tested"})
    desk.carry()
    assert (desk.now(early).state, desk.now(early).why) == ("failed", "no rollout of shop is under way")
    desk.came(READY)
    desk.carry()
    (rollout,) = desk.store.rollouts()
    (become,) = decide(rollout, [r.upgrade for r in desk.store.rows(rollout.id)], failed_before_swap=0, now=NOW)
    assert isinstance(become, Become)
    desk.store.change(rollout, become.rollout, entry=Entry(event=become.event, actor="c"))
    for who, state, rolls in (
        ({"who": "eve"}, "failed", "awaiting_approval"),
        ({}, "failed", "awaiting_approval"),
        ({"who": "anna"}, "done", "awaiting_approval"),
        ({"who": "anna"}, "done", "awaiting_approval"),
        (None, "done", "running"),
    ):
        payload = {"type": "release.tested"} if who is None else {"type": "release.agreed", "data": who}
        asked = desk.came(payload)
        desk.carry()
        assert (desk.now(asked).state, operations.find(desk.store, rollout.id).state) == (state, rolls), who


def waits(desk: Desk, *, wave: int) -> Rollout:
    """The one rollout, which waits for `wave` to be approved."""
    (was,) = desk.store.rollouts()
    now = replace(was, state="awaiting_approval", wave=wave, approvals=tuple(Approval(wave=n) for n in (0, 1)))
    stored = desk.store.change(was, now, entry=Entry(event="approval asked", actor="c"))
    assert stored is not None
    return stored


def test_an_approval_is_for_the_wave_that_waited_when_it_came_and_for_no_other(desk: Desk) -> None:
    desk.came(READY)
    desk.carry()
    early = desk.came({"type": "release.tested"})
    waits(desk, wave=0)
    late = desk.came({"type": "release.tested"})
    waits(desk, wave=1)
    desk.carry()
    assert (desk.now(early).state, desk.now(late).state) == ("failed", "failed")
    assert "did not wait for an approval when this came" in desk.now(early).why
    assert "waits for wave 2 to be approved, not for wave 1" in desk.now(late).why
    (rollout,) = desk.store.rollouts()
    assert (rollout.state, rollout.wave, rollout.approved_by) == ("awaiting_approval", 1, ())
    good = desk.came({"type": "release.tested"})
    desk.carry()
    assert (desk.now(good).state, desk.store.rollouts()[0].approved) == ("done", 1)


def test_an_approval_is_not_carried_out_again_nor_is_what_has_become_one(desk: Desk, tmp_path: Path) -> None:
    desk.came(READY)
    desk.carry()
    was = waits(desk, wave=0)
    asked, other = desk.came({"type": "release.tested"}), desk.came({"type": "release.passed"})
    for state in ("waiting", "done"):
        assert desk.now(asked).state == state
        with pytest.raises(Conflict, match=r"is an approval, which is carried out once.*its sender can send another"):
            hooks.redeliver(desk.store, asked.id)
        desk.carry()
    waits(desk, wave=1)
    desk.hooks = hook_file.load(written(tmp_path, FILE.replace("release.tested", "release.passed")))
    with pytest.raises(Conflict, match="is an approval"):
        hooks.redeliver(desk.store, other.id, desk.hooks)
    assert desk.now(other).state == "ignored"
    hooks.redeliver(desk.store, other.id)  # by somebody who does not know the rules: who carries it out does
    desk.carry()
    assert desk.now(other).state == "failed" and "is an approval" in desk.now(other).why
    assert operations.find(desk.store, was.id).state == "awaiting_approval"


def test_an_abort_without_a_rollout_says_so(desk: Desk) -> None:
    asked = desk.came({"type": "release.recalled"})
    desk.carry()
    assert (desk.now(asked).state, desk.now(asked).why) == ("done", "no rollout of shop is under way")


def test_an_abort_calls_off_a_start_that_waits_and_waits_for_one_at_work(desk: Desk) -> None:
    desk.world.mute = lambda: None
    started = desk.came(READY)
    (taken,) = hooks.take(desk.store, desk.hooks, most=1)
    recalled = desk.came({"type": "release.recalled", "data": {"reason": "it\nleaks\x1b[31m"}})
    desk.carry()
    assert desk.now(recalled).state == "waiting"
    hooks.carry_out(desk.store, desk.world, desk.hooks, taken, Waiter(timeout=0, every=0.001))  # nobody answered
    assert desk.now(started).state == "waiting" and desk.now(started).why
    desk.clock.now += 1.1
    desk.carry()
    assert (desk.now(started).state, desk.now(recalled).state) == ("ignored", "done")
    assert recalled.id in desk.now(started).why
    desk.world.mute = None
    desk.clock.now += 600
    desk.carry()
    assert desk.store.rollouts() == []


def test_what_cannot_be_done_now_is_tried_again_later_and_given_up_in_the_end(desk: Desk) -> None:
    desk.world.error = "no route to the cloud"
    asked = desk.came(READY)
    tries = 0
    while desk.now(asked).state == "waiting":
        desk.carry()
        tries += 1
        desk.clock.now = max(desk.clock.now, desk.now(asked).due or 0)
    assert 50 < tries < 80
    assert desk.clock.now - asked.received_at >= GIVE_UP
    assert desk.now(asked).why.startswith("given up after 60 min: the worker could not read the world")
    desk.world.error = ""
    assert hooks.redeliver(desk.store, asked.id)[1]
    assert not hooks.redeliver(desk.store, asked.id)[1]
    desk.carry()
    assert [rollout.id for rollout in desk.store.rollouts()] == [asked.rollout]


def test_whoever_dies_with_it_in_hand_another_carries_it_out_and_once(desk: Desk) -> None:
    asked = desk.came(READY)
    (dead,) = hooks.take(desk.store, desk.hooks, most=9)
    desk.carry()
    assert desk.store.rollouts() == []
    with pytest.raises(Conflict, match="being carried out"):
        hooks.redeliver(desk.store, asked.id)
    desk.clock.now += IN_HAND
    desk.carry()
    assert desk.now(asked).state == "done"
    assert hooks.carry_out(desk.store, desk.world, desk.hooks, dead) is None, "it woke up again"
    assert [rollout.id for rollout in desk.store.rollouts()] == [asked.rollout]


def test_what_was_carried_out_may_be_asked_for_again_and_makes_no_second_rollout(desk: Desk) -> None:
    asked = desk.came(READY)
    desk.carry()
    hooks.redeliver(desk.store, asked.id)
    desk.carry()
    assert desk.now(asked).state == "done" and len(desk.store.rollouts()) == 1
    with pytest.raises(NotFound):
        hooks.redeliver(desk.store, "d9")


def test_by_rules_that_were_mended_what_was_ignored_is_carried_out(desk: Desk, tmp_path: Path) -> None:
    staging = {"type": "release.ready", "data": {"environment": "staging", "disk": "2GiB"}}
    asked = desk.came(staging)
    desk.hooks = hook_file.load(
        written(
            tmp_path,
            FILE.replace("environment: production, ", "").replace(
                "release.ready, /data/environment: production", "release.ready"
            ),
        )
    )
    hooks.redeliver(desk.store, asked.id)
    desk.carry()
    (rollout,) = desk.store.rollouts()
    assert desk.now(asked).rollout == rollout.id
    desk.hooks = hook_file.load(written(tmp_path, FILE))
    hooks.redeliver(desk.store, asked.id)
    desk.carry()
    assert desk.now(asked).state == "ignored"


def test_a_process_leaves_alone_what_is_of_hooks_that_it_does_not_know(desk: Desk) -> None:
    asked = desk.came(READY)
    other = Hooks(known={name: known for name, known in desk.hooks.known.items() if name != "releases"})
    assert hooks.take(desk.store, other, most=9) == []
    assert desk.now(asked).state == "waiting"


def test_a_store_that_is_away_costs_no_delivery(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = desk.came(READY)

    def away(*_: Any) -> Any:
        raise Unreachable("Redis does not answer")

    with monkeypatch.context() as cut:
        cut.setattr(desk.store, "create", away)
        desk.carry()
    assert (desk.now(asked).state, desk.now(asked).attempts) == ("waiting", 1)
    desk.clock.now += 3
    desk.carry()
    assert desk.now(asked).state == "done"


def test_what_nobody_expected_keeps_no_other_from_being_carried_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = desk.came(READY)
    monkeypatch.setattr(operations, "apply", lambda *_, **__: 1 // 0)
    desk.carry()
    assert desk.now(asked).why == "something unexpected happened: ZeroDivisionError"
    assert desk.now(asked).state == "waiting"


def test_a_carrier_that_is_told_to_end_gives_back_what_it_waits_for(desk: Desk) -> None:
    import threading

    desk.world.mute = lambda: None
    asked = desk.came(READY)
    carrier = hooks.Carrier(store=desk.store, ask=desk.world, hooks=desk.hooks)
    thread = threading.Thread(target=carrier.run)
    thread.start()
    while desk.now(asked).in_hand == 0:
        thread.join(0.01)
        assert thread.is_alive()
    carrier.end()
    thread.join(30)
    assert not thread.is_alive()
    given_back = desk.now(asked)
    assert (given_back.state, given_back.in_hand) == ("waiting", 0.0)
    assert given_back == replace(given_back, why="the process that carried it out has ended")


def test_a_changed_file_or_secret_counts_at_once_and_a_broken_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store, said = written(tmp_path), MemoryStore(Clock()), b"{}"
    with capture_logs() as logs:
        fresh = hook_file.fresh_hooks(path)

        def holds(secret: str) -> bool:
            given = headers(said, key=standard_key(secret))
            return hooks.verify(store, fresh(), "releases", given, said) is not None

        newer = "whsec_" + base64.b64encode(bytes(range(7, 39))).decode()
        assert (holds(SECRET), holds(newer), logs) == (True, False, [])
        replaced(tmp_path / "release.secret", newer)
        assert (holds(SECRET), holds(newer)) == (False, True)
        replaced(tmp_path / "release.secret", "half of i")
        assert (holds(SECRET), holds(newer), holds(newer)) == (False, True, True), "the one before holds"
        replaced(path, FILE.replace("older.secret", "next.secret"))
        (tmp_path / "release.secret").unlink()
        assert holds(newer)
        replaced(tmp_path / "release.secret", SECRET)
        assert holds(newer), "next.secret is not there"
        replaced(tmp_path / "next.secret", newer)
        monkeypatch.setattr(hook_file, "AGAIN", 0.0)
        assert holds(SECRET) and holds(newer) and not holds(OLDER)
    assert [(each["log_level"], each["kept"]) for each in logs] == [
        ("info", "what it says now"),
        ("warning", "what it said before"),
        ("warning", "what it said before"),
        ("warning", "what it said before"),
        ("info", "what it says now"),
    ]
    told = " ".join(each.get("why", "") for each in logs)
    assert "release.secret" in told and "next.secret cannot be read" in told and "half of i" not in told


def replaced(file: Path, text: str) -> None:
    """At once, as those who read it want it."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)


# -- at the command line ---------------------------------------------------------------------------------------------


def test_a_file_is_checked_and_a_secret_is_made_on_the_command_line(place: Place, tmp_path: Path) -> None:
    code, out, _ = place.run("hooks", "check", str(written(tmp_path)))
    assert code == 0
    assert "/hooks/releases   signed as standard, by one of 2" in out
    assert "start shop   if deployment, /deployment/environment is 'production'" in out
    code, body = place.json("hooks", "check", str(tmp_path / "hooks.yaml"))
    assert (code, body["schema"], len(body["hooks"][1]["rules"])) == (0, "changeover/v1/hooks", 3)
    code, _, err = place.run("hooks", "check", str(tmp_path / "shop.yaml"))
    assert code == 64 and "shop.yaml:" in err
    code, out, _ = place.run("hooks", "secret")
    assert (code, len(standard_key(out.strip()))) == (0, 32)


def test_what_came_is_listed_and_carried_out_again_on_the_command_line(place: Place, tmp_path: Path) -> None:
    code, _, err = place.run("hooks", "list")
    assert code == 0 and "Nothing has come yet" in err
    known = hook_file.load(written(tmp_path))
    found = hooks.receive(place.store, known, "releases", Signed(key="m", event="", once="m"), {"type": "x"})
    assert found is not None
    code, out, _ = place.run("hooks", "list")
    assert code == 0 and f"{found.id}  releases  x  nothing: ignored: no rule of this hook fits it" in out
    code, body = place.json("hooks", "redeliver", found.id)
    assert (code, body["changed"], body["delivery"]["state"]) == (0, True, "waiting")
    code, out, _ = place.run("hooks", "redeliver", found.id)
    assert code == 0 and "It was so already" in out
    assert place.json("hooks", "list")[1]["deliveries"][0]["state"] == "waiting"
    assert place.run("hooks", "redeliver", "d9")[0] == 64
    yes = hooks.receive(place.store, known, "releases", Signed(key="y", event="", once="y"), {"type": "release.tested"})
    assert yes is not None
    code, _, err = place.run("hooks", "redeliver", yes.id)
    assert code == 1 and "is an approval" in err and "changeover approve ROLLOUT" in err
