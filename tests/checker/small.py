"""A small rollout, written by hand: web-1 was upgraded, its A is kept; web-2 failed its smoke test and stays on A."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Doc = dict[str, Any]
STEPS = ("create_image", "provision", "poll_readiness", "smoke_test", "swap", "drain_old")


class Log:
    """One server's audit entries, each with the record after it."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.record: Doc = {"schema": 1, "rollout": "r1", "server": server, "wave": 0}
        self.lines: list[Doc] = []

    def entry(self, at: float, event: str, detail: Mapping[str, Any] | None = None, **changes: Any) -> None:
        was = self.record.get("state", "pending")
        self.record = {k: v for k, v in {**self.record, **changes}.items() if v is not None}
        self.lines.append(
            {
                "rollout": "r1",
                "id": f"{int(at * 1000)}-{len(self.lines)}",
                "at": at,
                "server": self.server,
                "n": len(self.lines) + 1,
                "event": event,
                "actor": "w1",
                "was": was,
                "now": self.record.get("state", "pending"),
                "detail": dict(detail or {}),
                "after": json.loads(json.dumps(self.record)),
            }
        )

    def began(self, at: float, step: str) -> None:
        intent = {"step": step, "token": f"{self.server}-{step}", "name": f"co-{self.server}-{step}", "at": at}
        begun = [*self.record.get("begun", ()), intent]
        state = "upgraded" if step == "retire" else "running"
        self.entry(at, "Began", {"step": step}, state=state, intent=intent, begun=begun, wait=None)

    def finished(self, at: float, step: str, result: Doc) -> None:
        following = (*STEPS, "retire")[STEPS.index(step) + 1]
        results = {**self.record.get("results", {}), step: result}
        state = "upgraded" if following == "retire" else "running"
        self.entry(at, "Finished", {"step": step}, state=state, step=following, intent=None, results=results, wait=None)

    def waits(self, at: float, reason: str, notes: Doc) -> None:
        wait = {"reason": reason, "at": at + 1}
        self.entry(at, "Waits", {"reason": reason, "notes": notes}, state="waiting", wait=wait, notes=notes)

    def step(self, at: float, step: str, result: Doc, *, until: float) -> None:
        self.began(at, step)
        self.finished(until, step, result)


def small() -> dict[str, Any]:
    """The evidence by file name, without a violation."""
    one, two = Log("web-1"), Log("web-2")
    for log in (one, two):
        log.entry(1.0, "Admitted", state="running")
        log.step(1.0, "create_image", {"image": f"img-{log.server}"}, until=3.0)
        log.step(3.0, "provision", {"server": f"srv-{log.server}"}, until=4.0)
        log.step(4.0, "poll_readiness", {"boot": "1"}, until=6.0)
        log.began(6.0, "smoke_test")
        log.waits(7.0, "1 of 2", {"passes": 1, "last": ""})
    one.finished(8.0, "smoke_test", {"passes": 2})
    one.step(8.0, "swap", {"since": 10.0}, until=15.0)
    one.step(15.0, "drain_old", {"stopped": "a1"}, until=17.0)
    two.entry(8.0, "TurnedBack", {"why": "500"}, state="running", direction="undo", intent=None, wait=None)
    for at, step in ((9.0, "smoke_test"), (10.0, "poll_readiness"), (11.0, "provision"), (12.0, "create_image")):
        two.entry(at, "UndoBegan", {"step": step}, undoing=step)
        left = STEPS[: STEPS.index(step)]
        end = {"step": left[-1]} if left else {"state": "failed"}
        two.entry(at + 0.5, "Undone", {"step": step}, **end)
    return {
        "plan.json": _plan(),
        "cloud.jsonl": _cloud(),
        "inventory.json": [
            _thing("a1", "server", "stopped", {}, "10.0.0.1"),
            _thing("a2", "server", "running", {}, "10.0.0.2"),
            _thing("srv-web-1", "server", "running", _tags("web-1", "provision"), "10.0.1.1"),
            _thing("img-web-1", "image", "available", _tags("web-1", "create_image"), ""),
        ],
        "balancer.jsonl": _balancer(),
        "probes.jsonl": [
            {"at": 6.5, "address": "10.0.1.1", "boot": "1", "passed": True},
            {"at": 7.5, "address": "10.0.1.1", "boot": "1", "passed": True},
            {"at": 7.6, "address": "10.0.1.2", "boot": "1", "passed": False},
        ],
        "audit.jsonl": [
            _rollout(0.0, "created", "", "running", {"waves": [["web-1", "web-2"]]}),
            *sorted([*one.lines, *two.lines], key=lambda line: line["at"]),
            _rollout(18.0, "failed", "running", "failed", {}),
        ],
        "ledger.json": [
            {"key": "image:web-1-create_image", "kind": "image", "server": "web-1", "state": "live", "id": "img-web-1"},
            {"key": "server:web-1-provision", "kind": "server", "server": "web-1", "state": "live", "id": "srv-web-1"},
            {"key": "old:web-1", "kind": "old server", "server": "web-1", "state": "retained", "id": "a1", "until": 77},
            {"key": "image:web-2-create_image", "kind": "image", "server": "web-2", "state": "deleted", "id": ""},
            {"key": "server:web-2-provision", "kind": "server", "server": "web-2", "state": "deleted", "id": ""},
        ],
        "records.json": {"web-1": one.record, "web-2": two.record},
        "traffic.jsonl": [{"at": float(at), "id": f"q{at}", "pool": "web", "status": 200} for at in range(20)],
        "orders.json": {"sent": ["o1", "o2"], "stored": ["o2", "o1"]},
        "results.jsonl": [{"at": 8.0, "server": "web-1", "task": "tasks.smoke_test", "result": {"step": "done"}}],
        "secrets.json": ["correct-horse-battery"],
        "incidents.jsonl": [{"at": 10.0, "kind": "control plane down", "until": 12.0}],
    }


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    for name, content in files.items():
        lines = name.endswith(".jsonl")
        text = "".join(json.dumps(line) + "\n" for line in content) if lines else json.dumps(content)
        (folder / name).write_text(text)
    return folder


def _plan() -> Doc:
    members = {f"web-{n}": {"address": f"10.0.0.{n}", "port": 80} for n in (1, 2)}
    return {
        "rollout": "r1",
        "retain_seconds": 60.0,
        "soak_seconds": 5.0,
        "bake_seconds": 0.0,
        "smoke_fresh_seconds": 600.0,
        "smoke_passes": 2,
        "servers": {f"web-{n}": {"id": f"a{n}", "pools": ["web"], "smoke_requests": 1} for n in (1, 2)},
        "pools": {"web": {"port": 80, "min_healthy": 2, "members": members}},
    }


def _tags(server: str, step: str) -> Doc:
    return {
        "changeover:managed": "1",
        "changeover:rollout": "r1",
        "changeover:server": server,
        "changeover:step": step,
        "changeover:attempt": "0",
    }


def _thing(id: str, kind: str, state: str, tags: Doc, address: str) -> Doc:
    return {"id": id, "kind": kind, "state": state, "tags": tags, "name": id, "address": address, "boot": "1"}


def _cloud() -> list[Doc]:
    def made(at: float, kind: str, server: str, step: str, **more: Any) -> Doc:
        id = f"{'img' if kind == 'image' else 'srv'}-{server}"
        about = {"token": f"{server}-{step}", "name": id, "tags": _tags(server, step)}
        return {"at": at, "call": f"ensure_{kind}", "id": id, "outcome": "made", "effect": True, **about, **more}

    def done(at: float, call: str, id: str, **more: Any) -> Doc:
        return {"at": at, "call": call, "id": id, "outcome": "done", "effect": True, **more}

    return [
        made(1.5, "image", "web-1", "create_image"),
        made(1.5, "image", "web-2", "create_image"),
        made(3.5, "server", "web-1", "provision", address="10.0.1.1", boot="1"),
        made(3.5, "server", "web-2", "provision", address="10.0.1.2", boot="1"),
        done(9.0, "add", "web-1.g2", pool="web", address="10.0.1.1"),
        done(11.2, "terminate", "srv-web-2"),
        done(12.2, "delete_image", "img-web-2"),
        done(15.5, "remove", "web-1", pool="web", address="10.0.0.1"),
        done(16.0, "remove", "web-1", pool="web", address="10.0.0.1"),
        done(16.5, "stop", "a1"),
    ]


def _balancer() -> list[Doc]:
    def pool(at: float, **states: str) -> Doc:
        addresses = {"a1": ("web-1", "10.0.0.1"), "a2": ("web-2", "10.0.0.2"), "b1": ("web-1.g2", "10.0.1.1")}
        members = {
            addresses[who][0]: {"address": addresses[who][1], "port": 80, "state": state}
            for who, state in states.items()
        }
        return {"at": at, "pool": "web", "members": members}

    return [
        pool(0.0, a1="serving", a2="serving"),
        pool(9.0, a1="serving", a2="serving", b1="joining"),
        pool(10.0, a1="serving", a2="serving", b1="serving"),
        pool(15.5, a1="draining", a2="serving", b1="serving"),
        pool(16.0, a2="serving", b1="serving"),
    ]


def _rollout(at: float, event: str, was: str, now: str, after: Doc) -> Doc:
    line = {"rollout": "r1", "id": f"{int(at * 1000)}-0", "at": at, "server": "", "n": 0, "event": event, "actor": "c"}
    return {**line, "was": was, "now": now, "detail": {}, "after": {"state": now, **after}}
