"""The command line: data on stdout, talk on stderr, an exit code for each end, and no traceback for a person."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import orchestrator.cli.session
from orchestrator import operations
from orchestrator.cli import main, session, watching
from orchestrator.domain.orphans import Sighting
from orchestrator.domain.plan import token
from orchestrator.domain.rebuild import Found
from orchestrator.domain.rollout import Approval
from orchestrator.domain.upgrade import Admitted, Ailed, Held, TurnedBack
from orchestrator.errors import PointOfNoReturn, UnsafeStore
from orchestrator.settings import Settings
from orchestrator.state_folder import StateFolder
from orchestrator.store import Entry, LedgerItem, Row
from orchestrator.store.memory import MemoryStore
from orchestrator.words import moment
from tests.support.valkey import running_valkey
from tests.unit.test_operations import FLEET, Clock, World, at_step, put, row, upgraded

ENTRY = Entry(event="test", actor="test")


@dataclass
class Place:
    """A command line over a memory, and a fleet file beside it."""

    store: MemoryStore
    world: World
    clock: Clock
    file: Path
    read: Callable[[], tuple[str, str]]

    def run(self, *words: str) -> tuple[int, str, str]:
        code = main(list(words))
        out, err = self.read()
        assert "Traceback" not in err
        return code, out, err

    def json(self, *words: str) -> tuple[int, dict[str, Any]]:
        code, out, err = self.run(*words, "--output", "json")
        (line,) = out.splitlines()
        body: dict[str, Any] = json.loads(line)
        assert err == ""
        return code, body

    def applied(self) -> str:
        code, body = self.json("apply", str(self.file), "--yes")
        assert code == 0
        return str(body["rollout"]["id"])


@dataclass
class OverMemory:
    """What a command gets in place of Redis and Celery."""

    store: MemoryStore
    settings: Settings
    ask: World

    def check_messages(self) -> None: ...

    def publish(self) -> Any:
        return lambda _messages: None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    clock = Clock()
    store = MemoryStore(clock)
    world = World(store)

    @contextmanager
    def opened() -> Iterator[OverMemory]:
        yield OverMemory(store, Settings(dev=True, state_dir=tmp_path / "state"), world)

    monkeypatch.setattr(orchestrator.cli.session, "opened", opened)
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)

    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return Place(store, world, clock, file, read)


def spoil(place: Place, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """That server's record is garbage from now on."""
    rows, row = place.store.rows, place.store.row

    def broken(key: str) -> UnsafeStore:
        return UnsafeStore(f"the Upgrade stored at sv:{key} cannot be read: it is no JSON")

    def some(rollout: str, servers: Collection[str] | None = None) -> Sequence[Row]:
        if servers is None or server in servers:
            raise broken(server)
        return rows(rollout, servers)

    def one(rollout: str, name: str) -> Row | None:
        if name == server:
            raise broken(server)
        return row(rollout, name)

    monkeypatch.setattr(place.store, "rows", some)
    monkeypatch.setattr(place.store, "row", one)


def changeover(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The real program."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CHANGEOVER_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", "import sys; from orchestrator.cli import main; sys.exit(main())", *words],
        env={**clean, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -- from a fleet file to a rollout ----------------------------------------------------------------------------------


def test_a_plan_is_shown_and_ends_with_two_only_when_asked(place: Place, tmp_path: Path) -> None:
    code, out, err = place.run("plan", str(place.file))
    assert code == 0
    assert "3 servers to replace in 2 waves" in out
    assert "Next: changeover apply" in err
    code, body = place.json("plan", str(place.file), "--detailed-exitcode", "--out", str(tmp_path / "plan.json"))
    assert code == 2
    assert body["schema"] == "changeover/v1/plan"
    assert body["waves"] == [["web-1"], ["web-2", "web-3"]]
    assert json.loads((tmp_path / "plan.json").read_text()) == body


def test_a_plan_with_blockers_fails_and_says_so(place: Place) -> None:
    place.world.change = {"problem": "it does not answer from inside"}
    code, out, err = place.run("plan", str(place.file))
    assert code == 1
    assert "web-1: it does not answer from inside" in out
    assert "Traffic: unchanged" in err
    code, _, err = place.run("apply", str(place.file), "--yes")
    assert code == 1
    assert "web-1: it does not answer from inside" in err
    assert place.store.rollouts() == []


def test_a_disk_that_is_too_small_is_a_fault_of_the_file_with_its_place(place: Place) -> None:
    place.world.change = {"disk_used": 3 * 2**30}
    for words in (("plan", str(place.file)), ("apply", str(place.file), "--yes")):
        code, _, err = place.run(*words)
        assert code == 64
        assert "fleet.yaml:5: target.size.disk: 1 GiB is smaller than what web-1's disk holds, 3 GiB" in err
    assert place.store.rollouts() == []


def test_a_bad_file_is_told_line_by_line_and_nothing_is_created(place: Place) -> None:
    place.file.write_text(FLEET.replace("fleet: shop", "fleet: Shop!").replace("port: 8080", "port: 0"))
    for words in (("plan",), ("apply", "--yes"), ("doctor",)):
        code, out, err = place.run(words[0], str(place.file), *words[1:])
        assert code == 64
        assert out == ""
        lines = err.splitlines()
        assert lines[0].startswith("Error: fleet.yaml:2: fleet: ")
        assert lines[1].strip().startswith("fleet.yaml:13: traffic.pools.web.port: ")
        assert lines[2].startswith("Traffic: ")
        assert lines[3].startswith("Next: ")
    assert place.world.asked == []
    assert place.store.rollouts() == []


def test_an_error_in_json_is_one_object_on_stderr(place: Place) -> None:
    code, out, err = place.run("show", "r000", "--output", "json")
    assert code == 64
    assert out == ""
    body = json.loads(err)
    assert body["schema"] == "changeover/v1/error"
    assert body["exit_code"] == 64
    assert body["next"].startswith("changeover rebuild FILE"), "nothing at all is known: Redis may have lost it"
    place.applied()
    assert json.loads(place.run("show", "r000", "--output", "json")[2])["next"] == "changeover rollouts"


def test_apply_asks_and_without_a_terminal_wants_yes(place: Place) -> None:
    code, _, err = place.run("apply", str(place.file))
    assert code == 64
    assert "this is no terminal" in err
    assert f"Next: changeover apply {place.file} --yes" in err
    assert place.store.rollouts() == []


def test_apply_with_a_plan_refuses_a_world_that_has_moved(place: Place) -> None:
    _, plan = place.json("plan", str(place.file))
    place.world.change = {"memory": 5}
    code, _, err = place.run("apply", str(place.file), "--plan", plan["id"], "--yes")
    assert code == 1
    assert "web-1: memory was 134217728, is 5" in err
    place.world.change = {}
    code, _, _ = place.run("apply", str(place.file), "--plan", plan["id"], "--yes")
    assert code == 0
    code, _, err = place.run("apply", str(place.file), "--plan", "p0", "--yes")
    assert code == 64
    assert "there is no plan p0" in err


def test_doctor_lists_its_checks_and_fails_with_the_next_command(place: Place) -> None:
    code, body = place.json("doctor", str(place.file))
    assert code == 1
    assert [check["name"] for check in body["checks"]] == ["fleet file", "Redis", "workers"]
    place.store.beat("w1", {}, ttl=1000)
    code, out, _ = place.run("doctor", str(place.file))
    assert code == 0
    assert "pool web" in out


def test_doctor_prints_the_policies_alone_as_a_cloud_takes_them(place: Place) -> None:
    place.store.beat("w1", {}, ttl=1000)
    code, out, err = place.run("doctor", str(place.file), "--policy")
    assert (code, out) == (0, "") and "need no policy" in err
    mine = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["ec2:StopInstances"]}]}
    place.world.policies = [{"who": "arn:aws:iam::1:role/shop", "policy": mine}]
    code, out, err = place.run("doctor", str(place.file), "--policy")
    assert (code, json.loads(out)) == (0, mine) and "For arn:aws:iam::1:role/shop" in err
    code, body = place.json("doctor", str(place.file), "--policy")
    assert (body["schema"], body["policies"]) == ("changeover/v1/policies", place.world.policies)
    place.world.error = "no worker has the extra aws"
    code, out, err = place.run("doctor", str(place.file), "--policy")
    assert code != 0 and out == "" and "no worker has the extra aws" in err


def test_doctor_says_how_to_mend_workers_that_hang_and_never_to_end_what_serves(place: Place) -> None:
    place.store.beat("w1", {"pid": 41, "host": "here"}, ttl=0.2)
    place.store.beat("w2", {"pid": 42, "host": "here"}, ttl=0.2)
    place.world.mute = lambda: setattr(place.clock, "now", place.clock.now + 1)
    code, body = place.json("doctor", str(place.file), "--timeout", "0.1")
    ill = {check["name"]: check for check in body["checks"] if not check["ok"]}
    assert (code, list(ill)) == (1, ["workers"])
    assert ill["workers"]["detail"] == "w1 (process 41), w2 (process 42): registered, and no answer"
    assert "kill -9 41 42" in ill["workers"]["fix"]


def test_doctor_knows_the_workers_that_hang_from_what_up_has_written(place: Place) -> None:
    folder = StateFolder.open(place.file.parent / "state")
    lock = folder.lock()
    folder.write_run({"logs": str(folder.path / "logs"), "processes": {"valkey": 1, "coordinator": 2, "w1": 43}})
    _, body = place.json("doctor", str(place.file))
    place.store.beat("w2", {}, ttl=1000)
    code, others = place.json("doctor", str(place.file))
    assert code == 1 and [c["detail"] for c in others["checks"] if not c["ok"]] == [
        "w1 (process 43): started here, and no answer"
    ]
    place.clock.now += 1001
    os.close(lock)
    (ill,) = (check for check in body["checks"] if not check["ok"])
    assert "w1 (process 43)" in ill["detail"]
    assert f"less {folder.path}/logs/w1.log; then kill -9 43" in ill["fix"]
    _, body = place.json("doctor", str(place.file))
    assert body["checks"][-1]["fix"] == "changeover up, or changeover worker", "of an `up` that has ended nothing hangs"


# -- looking ---------------------------------------------------------------------------------------------------------


def test_rollouts_are_listed_newest_first(place: Place) -> None:
    code, _, err = place.run("rollouts")
    assert code == 0
    assert "Next: changeover plan" in err
    id = place.applied()
    code, out, _ = place.run("rollouts")
    assert id in out
    code, body = place.json("rollouts")
    assert body["schema"] == "changeover/v1/rollouts"
    assert body["rollouts"][0]["counts"] == {"pending": 3}


def test_show_puts_what_needs_a_person_first(place: Place) -> None:
    id = place.applied()
    put(place.store, id, "web-1", at_step(place.store, id, "web-1", "swap").after(Held(why="quota\x1b[31m reached")))
    code, out, _ = place.run("show", id, "--servers")
    assert code == 0
    assert out.index("NEEDS YOU") < out.index("Waves")
    assert "quota\\x1b[31m reached" in out
    assert "\x1b" not in out
    assert f"Next: changeover retry {id} --server web-1" in out
    code, body = place.json("show", id)
    assert body["exit_code"] == 3
    assert {server["server"]: server["state"] for server in body["servers"]}["web-1"] == "held"


@pytest.mark.parametrize(
    ("state", "code"), [("succeeded", 0), ("failed", 1), ("paused", 3), ("rolled_back", 4), ("aborted", 4)]
)
def test_watch_ends_with_the_code_of_how_it_ended(place: Place, state: Any, code: int) -> None:
    id = place.applied()
    was = operations.find(place.store, id)
    place.store.change(was, replace(was, state=state), entry=ENTRY)
    found, out, _ = place.run("watch", id)
    assert found == code
    assert f"Rollout {id} is {state.replace('_', ' ')}" in out
    found, out, _ = place.run("watch", id, "--output", "json")
    assert found == code
    documents = [json.loads(line) for line in out.splitlines()]
    assert [d["schema"] for d in documents] == ["changeover/v1/event"] * 2 + ["changeover/v1/rollout"]


def test_watch_waits_for_a_server_that_is_put_back_after_the_rollout_has_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.watching.BLOCK", 0.01)
    id = place.applied()
    was = operations.find(place.store, id)
    place.store.change(was, replace(was, state="succeeded", why="all went well"), entry=ENTRY)
    for name in ("web-1", "web-2", "web-3"):
        upgraded(place.store, id, name)
    assert place.run("watch", id, "--timeout", "0.1")[0] == 0
    back = row(place.store, id, "web-1").upgrade.after(TurnedBack(why="slow", at=place.clock(), asked=True))
    put(place.store, id, "web-1", back)
    code, _, err = place.run("watch", id, "--timeout", "0.1")
    assert code == 124 and "it goes on" in err
    _, out, _ = place.run("show", id)
    assert "now 2 of 3 upgraded, 1 on the way back" in out
    assert "when it ended: all went well" in out
    place.store.beat("w1", {}, ttl=1000)
    _, out, _ = place.run("show", id)
    assert f"Next: changeover watch {id}" in out
    assert f"Next: changeover watch {id}" in place.run("explain", "web-1")[1]


def test_a_freeze_is_told_to_whoever_puts_a_server_back(place: Place) -> None:
    id = place.applied()
    at_step(place.store, id, "web-1", "provision")
    place.store.freeze(True, actor="ann", reason="audit")
    code, out, err = place.run("rollback", id, "--server", "web-1")
    assert code == 0
    assert "goes back to its old server once it is unfrozen" in out and "audit" in out
    assert "Next: changeover unfreeze" in err
    assert "Next: changeover unfreeze" in place.run("explain", "web-1")[1]
    _, out, _ = place.run("rollback", id, "--server", "web-3")
    assert "web-3 had not begun: its old server serves, and stays." in out


def test_explain_on_an_empty_redis_names_rebuild(place: Place) -> None:
    code, _, err = place.run("explain", "web-1")
    assert code == 64
    assert "this Redis knows of no rollout" in err and "Next: changeover rebuild FILE" in err


def test_a_plan_for_servers_of_a_lost_rollout_names_rebuild_with_the_file(place: Place) -> None:
    place.world.strangers = ("web-1: the server srv-9 is unknown. If it was lost: changeover rebuild FILE",)
    code, out, err = place.run("plan", str(place.file))
    assert code == 1
    assert f"changeover rebuild {place.file}" in "".join(out.split("\n"))
    assert f"Next: changeover rebuild {place.file}" in err
    code, _, err = place.run("apply", str(place.file), "--yes")
    assert code == 1
    assert f"Next: changeover rebuild {place.file}" in err and " FILE" not in err


def test_watch_stops_for_a_person_when_only_held_servers_are_left(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.watching.SETTLED", 0.0)
    monkeypatch.setattr("orchestrator.cli.watching.BLOCK", 0.01)
    id = place.applied()
    put(place.store, id, "web-1", at_step(place.store, id, "web-1", "swap").after(Held(why="quota")))
    code, out, _ = place.run("watch", id)
    assert code == 3
    assert "web-1 needs you: quota" in out


def test_watch_gives_up_after_its_timeout(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.watching.BLOCK", 0.01)
    id = place.applied()
    code, _, err = place.run("watch", id, "--timeout", "0.1")
    assert code == 124
    assert "it goes on" in err


def test_ctrl_c_detaches_and_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    id = place.applied()

    def interrupted(*_args: object, **_kwargs: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.watching._lines", interrupted)
    code, _, err = place.run("watch", id)
    assert code == 0
    assert f"Detached. Rollout {id} goes on without you" in err
    monkeypatch.setattr(operations, "view", interrupted)
    code, _, err = place.run("show", id)
    assert code == 130
    assert "Stopped by Ctrl-C" in err


def test_explain_shows_the_evidence_traffic_and_the_next_command(place: Place) -> None:
    id = place.applied()
    u = at_step(place.store, id, "web-1", "smoke_test")
    detail = {
        "step": "smoke_test",
        "why": "B answers differently",
        "answers": [
            {
                "request": "GET http://shop.example/price",
                "pool": "web",
                "passed": True,
                "status": 200,
                "latency": 0.012,
                "same_as_old": False,
                "differences": ["-price 5", "+price 6"],
            }
        ],
        "balancer": [{"pool": "web", "name": "web-1.g2", "state": "serving", "detail": "L7OK/200"}],
    }
    turned = u.after(TurnedBack(why="B answers differently", at=place.clock.now, asked=False))
    entry = Entry(event="TurnedBack", actor="w1", detail=detail)
    assert place.store.turn(row(place.store, id, "web-1"), turned, entry=entry, due=place.clock.now)
    code, out, _ = place.run("explain", "web-1")
    assert code == 0
    for told in (
        "turned back: B answers differently",
        "✗ GET http://shop.example/price  pool web → 200 in 12 ms",
        "+price 6",
        "balancer: web-1.g2 in web is serving (L7OK/200)",
        "Traffic: web-1 serves",
        "Next: changeover watch",
    ):
        assert told in out
    _, body = place.json("explain", "web-1", "--rollout", id)
    assert body["events"][-1]["detail"]["answers"][0]["status"] == 200
    code, _, err = place.run("explain", "db-1")
    assert code == 64
    assert "there is no server db-1 in any rollout" in err


def test_events_are_lines_for_people_and_objects_for_programs(place: Place) -> None:
    id = place.applied()
    at_step(place.store, id, "web-1", "provision")
    code, out, _ = place.run("events", id)
    assert code == 0
    assert len(out.splitlines()) == 2
    code, out, _ = place.run("events", id, "-o", "json")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["created", "test"]


def test_a_report_is_written_as_a_page_and_as_json(place: Place, tmp_path: Path) -> None:
    id = place.applied()
    upgraded(place.store, id, "web-1")
    code, body = place.json("report", id, "--out", str(tmp_path / "report"))
    assert code == 0
    assert sorted(Path(file).suffix for file in body["files"]) == [".html", ".json"]
    assert all(Path(file).stat().st_size for file in body["files"])
    (tmp_path / "taken").write_text("")
    code, _, err = place.run("report", id, "--out", str(tmp_path / "taken"))
    assert code == 64
    assert "cannot be written" in err


# -- deciding --------------------------------------------------------------------------------------------------------


def test_pause_says_what_becomes_of_servers_under_way_and_how_to_go_on(place: Place) -> None:
    id = place.applied()
    at_step(place.store, id, "web-1", "smoke_test")
    code, out, err = place.run("pause", id, "--why", "lunch")
    assert code == 0
    assert "1 server under way, web-1 (smoke_test)" in out
    assert "Traffic: every server serves" in err
    assert f"Next: changeover resume {id}" in err
    code, body = place.json("pause", id)
    assert code == 0
    assert body["changed"] is False
    assert body["rollout"]["state"] == "paused"
    code, out, _ = place.run("resume", id)
    assert "is running again" in out


def test_what_stands_still_without_a_worker_or_under_a_freeze_says_so(place: Place) -> None:
    id = place.applied()
    assert "STANDS STILL" not in place.run("show", id)[1], "nothing is under way yet"
    at_step(place.store, id, "web-1", "swap")
    _, out, _ = place.run("show", id)
    assert "STANDS STILL no worker is alive" in out and out.endswith("Next: changeover doctor FILE\n")
    place.store.beat("w1", {}, ttl=1000)
    assert "STANDS STILL" not in place.run("show", id)[1]
    place.run("freeze", "--reason", "a look")
    assert place.run("show", id)[1].endswith("Next: changeover unfreeze\n")


def test_a_wave_that_waits_for_people_says_so_and_how_to_approve_it(place: Place) -> None:
    id = place.applied()
    was = operations.find(place.store, id)
    asks = (Approval(wave=0, count=2, within=60.0, otherwise="abort"),)
    told = "wave 1 begins when 2 people have approved it"
    waits = replace(was, approvals=asks, state="awaiting_approval", asked_at=place.store.now(), why=told)
    place.store.change(was, waits, entry=Entry(event="approval asked", actor="t"))
    _, out, _ = place.run("show", id)
    assert "NEEDS YOU" in out and "Wave 1 begins when 2 people have approved it; if nobody has by " in out
    assert f"{moment(place.store.now() + 60)}, it is aborted." in " ".join(out.split())
    assert f"Next: changeover approve {id} --wave 1" in out
    code, _, err = place.run("approve", id, "--wave", "2")
    assert code == 1 and "waits for wave 1 to be approved, not for wave 2" in err
    me = session.person()
    code, out, err = place.run("approve", id, "--wave", "1")
    assert code == 0 and out == f"Wave 1 of rollout {id} is approved by {me}; 1 more is wanted before it begins.\n"
    assert "It was so already." in place.run("approve", id)[1]
    operations.approve(place.store, id, who="ben", actor="ben")
    assert operations.find(place.store, id).state == "running"
    code, out, _ = place.run("promote", id)
    assert (code, out) == (0, f"Rollout {id} bakes no longer.\n")


def test_resuming_what_is_not_paused_says_so(place: Place) -> None:
    id = place.applied()
    code, out, _ = place.run("resume", id)
    assert (code, out) == (0, f"Rollout {id} is not paused, it is running.\n")


def test_a_retry_while_the_rollout_is_paused_names_what_lets_it_begin(place: Place) -> None:
    id = place.applied()
    u = row(place.store, id, "web-1").upgrade.after(Admitted(at=1.0))
    put(place.store, id, "web-1", u.after(TurnedBack(why="smoke", at=2.0, asked=False)))
    place.run("pause", id)
    code, out, err = place.run("retry", id, "--server", "web-1")
    assert code == 0
    assert "Tried again: web-1" in out
    assert f"Next: changeover resume {id}" in err


def test_a_new_server_that_ails_is_what_needs_you(place: Place) -> None:
    id = place.applied()
    u = upgraded(place.store, id, "web-1")
    for look in range(3):
        u = put(place.store, id, "web-1", u.after(Ailed(why="web-1.g2 is down in web", at=float(look), ill=True)))
    was = place.store.rollout(id)
    assert was is not None
    place.store.change(was, replace(was, alarm="web-1: web-1.g2 is down in web"), entry=ENTRY)
    _, out, _ = place.run("show", id)
    assert "NEEDS YOU" in out and "its new server ails: web-1.g2 is down in web" in out
    assert f"changeover rollback {id} --server web-1" in out
    assert "web-1.g2 is down" in place.run("rollouts")[1]
    _, body = place.json("show", id)
    assert body["rollout"]["alarm"] and body["servers"][0]["ails"] == "web-1.g2 is down in web"
    assert "does not serve as it must (web-1.g2 is down in web)" in body["servers"][0]["traffic"]
    was = operations.find(place.store, id)
    place.store.change(was, replace(was, state="succeeded", ended_at=1.0), entry=ENTRY)
    code, out, err = place.run("watch", id)
    assert code == 3, "it has succeeded, and a person is needed all the same"
    assert "web-1 needs you: its new server ails" in out
    assert err == f"Next: changeover rollback {id} --server web-1\n"


def test_why_an_old_server_is_kept_on_is_told_with_both_ways_to_decide(place: Place) -> None:
    id = place.applied()
    u = upgraded(place.store, id, "web-1")
    u = put(place.store, id, "web-1", u.after(Ailed(why="web-1.g2 is down in web", at=1.0, ill=True)))
    place.store.put_ledger(
        id, [LedgerItem(key="old:web-1", kind="old server", server="web-1", state="retained", id="s", until=2.0)]
    )
    place.clock.now += 10 * 86400.0
    put(place.store, id, "web-1", u.after(Ailed(why="web-1.g2 is down in web", at=place.clock.now, ill=True)))
    rollback = f"changeover rollback {id} --server web-1"
    why = "the old server of web-1 is kept on, whatever its time: the new one does not serve as it must"
    _, out, _ = place.run("gc", "--yes")
    told = " ".join(out.split())
    assert "kept on" in told and why in told and rollback in told and "sent on their way" not in told
    _, body = place.json("gc")
    assert [(k["server"], k["why"].startswith(why)) for k in body["kept_on"]] == [("web-1", True)]
    assert body["due"] == body["sent"] == []
    _, out, _ = place.run("show", id)
    told = " ".join(out.split())
    assert "Its old server is kept on, whatever its time, until the new one serves again" in told
    assert f"Next: {rollback} or changeover settle {id} web-1 --serving old|new --because TEXT" in told
    _, out, _ = place.run("explain", "web-1")
    assert why in " ".join(out.split()) and rollback in out


def test_a_held_undo_says_who_stays_in_and_how_else_it_ends(place: Place) -> None:
    id = place.applied()
    u = upgraded(place.store, id, "web-1").after(TurnedBack(why="back", at=2.0, asked=True))
    put(place.store, id, "web-1", u.after(Held(why="server srv-1 is terminated")))
    was = operations.find(place.store, id)
    place.store.change(was, replace(was, state="succeeded", ended_at=1.0), entry=ENTRY)
    settle = f"changeover settle {id} web-1 --serving old|new --because TEXT"
    for words in (("show", id), ("explain", "web-1")):
        _, out, _ = place.run(*words)
        assert "Traffic: web-1 is not back; its new server stays in its pools until it is" in out
        assert f"Next: changeover retry {id} --server web-1   or   {settle}" in out
    code, out, _ = place.run("watch", id)
    assert code == 3
    assert settle in out
    _, _, err = place.run("retry", id)
    assert f"Next: changeover explain web-1 --rollout {id}" in err, "there is nothing to watch of what has ended"
    code, _, err = place.run("settle", id, "web-1", "--serving", "new", "--because", "x")
    assert code == 1
    assert "web-1 is waiting; only a held server can be settled" in err


def test_no_retry_of_a_whole_rollout_is_named_where_nothing_has_failed(place: Place) -> None:
    id = place.applied()
    u = row(place.store, id, "web-1").upgrade.after(Admitted(at=1.0))
    put(place.store, id, "web-1", u.after(TurnedBack(why="asked", at=2.0, asked=True)))
    was = operations.find(place.store, id)
    place.store.change(was, replace(was, state="failed", ended_at=1.0), entry=ENTRY)
    assert place.json("show", id)[1]["next"] == f"changeover report {id} --out DIR"
    code, out, err = place.run("retry", id)
    assert (code, out) == (0, f"Rollout {id} has no server to try again.\n")
    assert f"Next: changeover show {id}" in err


def test_a_held_server_is_settled_as_a_person_says_once_a_worker_has_seen_it(place: Place) -> None:
    id = place.applied()
    put(place.store, id, "web-1", at_step(place.store, id, "web-1", "swap").after(Held(why="stuck")))
    settle = ("settle", id, "web-1", "--because", "mended")
    place.world.where = {"old": "serving", "new": "draining"}
    code, _, err = place.run(*settle, "--serving", "old")
    assert code == 1
    assert "web-1.g2 is still draining in pool web" in err and "--unchecked" in err
    place.world.where = {"old": "serving", "new": "absent"}
    code, out, err = place.run(*settle, "--serving", "old")
    assert code == 0
    assert "web-1 is settled: its old server serves" in out
    assert "Traffic: web-1 serves, as settled by a person" in err and "Next: changeover gc" in err
    code, body = place.json(*settle, "--serving", "old")
    assert (code, body["verb"], body["changed"], body["servers"][0]["by_hand"]) == (0, "settle", False, "mended")
    for wrong in (("--serving", "both"), ()):
        assert place.run(*settle, *wrong)[0] == 64


def test_a_held_server_is_not_said_to_go_on_by_a_resume_and_its_retry_tells_its_traffic(place: Place) -> None:
    id = place.applied()
    u = at_step(place.store, id, "web-1", "drain_old")
    u = put(place.store, id, "web-1", u.after(Held(why="1 connection")))
    place.run("pause", id)
    _, out, _ = place.run("resume", id)
    assert "No server was under way. Held until somebody retries: web-1 (drain_old)." in out
    _, _, err = place.run("retry", id, "--server", "web-1")
    assert f"Traffic: {u.traffic}" in err


def test_a_rollback_that_comes_too_late_tells_where_traffic_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    id = place.applied()
    upgraded(place.store, id, "web-1")
    code, out, err = place.run("rollback", id, "--server", "web-1")
    assert code == 0
    assert "web-1 goes back to its old server" in out

    def late(*_args: object, **_kwargs: object) -> Any:
        raise PointOfNoReturn(
            "web-1: its old server is terminated", traffic="the new one serves", next="changeover show"
        )

    monkeypatch.setattr(operations, "rollback_server", late)
    code, _, err = place.run("rollback", id, "--server", "web-1")
    assert code == 1
    assert "Traffic: the new one serves" in err


def test_every_verb_answers_in_json(place: Place) -> None:
    id = place.applied()
    put(place.store, id, "web-1", at_step(place.store, id, "web-1", "swap").after(Held(why="quota")))
    for words in (("retry", id), ("pause", id), ("resume", id), ("abort", id), ("rollback", id)):
        code, body = place.json(*words)
        assert code == 0
        assert body["schema"] == "changeover/v1/answer"
        assert body["verb"] == words[0]
        assert body["changed"] is True
    for verb in ("freeze", "unfreeze"):
        code, body = place.json(verb)
        assert body["schema"] == "changeover/v1/freeze"
        assert body["changed"] is True
    code, body = place.json("gc")
    assert body["schema"] == "changeover/v1/gc"
    assert place.json("version")[1]["schema"] == "changeover/v1/version"


def test_every_verb_speaks_to_people(place: Place) -> None:
    id = place.applied()
    for words in (("retry", id), ("abort", id), ("rollback", id), ("freeze",), ("freeze",), ("unfreeze",)):
        code, out, err = place.run(*words)
        assert code == 0
        assert out
        assert "Next: changeover" in err
    code, out, _ = place.run("gc")
    assert code == 0
    assert "0 things kept" in out


def test_a_rollout_is_rebuilt_after_it_was_shown_what_would_be(place: Place) -> None:
    made = token("r7", "fake", "default", "default", "web-2", "create_image", 0, 0)
    tags = {"rollout": "r7", "server": "web-2"}
    image = Found(kind="image", id="img-1", name=f"co-{made[:40]}", state="available", **tags)  # type: ignore[arg-type] # words only
    code, out, err = place.run("rebuild", str(place.file))
    assert code == 1
    assert "nothing of a rollout of these servers was found" in err
    place.world.marked = (image,)
    code, out, err = place.run("rebuild", str(place.file))
    assert code == 0
    assert "image img-1 (available)" in out and "provision" in out
    assert f"Next: changeover rebuild {place.file} --yes" in err
    assert place.store.rollouts() == []
    code, body = place.json("rebuild", str(place.file), "--yes")
    assert (code, body["schema"], body["rollout"], body["made"]) == (0, "changeover/v1/rebuilt", "r7", True)
    assert [s["step"] for s in body["servers"]] == ["create_image", "provision", "create_image"]
    assert body["next"] == "changeover resume r7"
    assert place.json("show", "r7")[1]["rollout"]["state"] == "paused"
    code, out, err = place.run("rebuild", str(place.file), "--yes")
    assert code == 1
    assert "this Redis knows rollout r7" in err and "Next: changeover show r7" in err


def test_a_rebuild_that_was_shown_for_one_of_several_rollouts_is_repeated_for_that_one(place: Place) -> None:
    def image(rollout: str) -> Found:
        made = token(rollout, "fake", "default", "default", "web-2", "create_image", 0, 0)
        about = {"rollout": rollout, "server": "web-2", "name": f"co-{made[:40]}", "state": "available"}
        return Found(kind="image", id=f"img-{rollout}", **about)  # type: ignore[arg-type] # words only

    assert f"Next: changeover plan {place.file}" in place.run("rebuild", str(place.file))[2], (
        "of nothing, nothing is rebuilt"
    )
    place.world.marked = (image("r7"), image("r8"))
    code, _, err = place.run("rebuild", str(place.file))
    assert code == 1
    assert "r7, r8 (the newest)" in err and f"Next: changeover rebuild {place.file} --rollout r8" in err
    code, _, err = place.run("rebuild", str(place.file), "--rollout", "r7", "--without", "web-1")
    assert code == 0
    assert f"Next: changeover rebuild {place.file} --rollout r7 --without web-1 --yes" in err


def test_what_an_empty_redis_may_have_lost_is_said_to_be_found_in_the_world(place: Place) -> None:
    assert "changeover rebuild FILE" in place.run("rollouts")[2]


def test_gc_says_what_becomes_of_orphans_and_names_the_command_once_it_would_do_something(place: Place) -> None:
    def seen(last: float, **more: Any) -> Sighting:
        about = {"lane": "fake/default/default", "kind": "image", "id": "img-1", "name": "co-1", "state": "available"}
        return Sighting(**{**about, "rollout": "r7", "server": "web-1", "first": 0.0, "last": last, "scans": 2, **more})

    place.applied()  # so that the lane is known

    def told(sighting: Sighting, *words: str) -> str:
        place.world.orphans = [sighting]
        code, out, err = place.run("gc", *words)
        assert code == 0 and "img-1" in out
        return err

    assert "quarantine what was seen for 15 min" in (young := told(seen(60.0))) and "Next:" not in young
    assert "Next: changeover gc --yes\n" in told(seen(900.0))
    assert "only with --foreign" in (foreign := told(seen(900.0, foreign=True))) and "Next:" not in foreign
    assert "Next: changeover gc --yes --foreign" in told(seen(900.0, foreign=True), "--foreign")
    assert told(seen(900.0, pools=("web",))) == "", "it stays as long as it is in a pool"
    serves = seen(900.0, foreign=True, kind="server", state="running")
    assert "--foreign --yes --only img-1" in (unnamed := told(serves, "--foreign")) and "Next:" not in unnamed
    assert "Next: changeover gc --yes --foreign --only img-1" in told(serves, "--foreign", "--only", "img-1")
    assert "may be serving users: its pools are not known here" in " ".join(place.run("gc")[1].split())
    assert "Nothing was touched: of what is listed nothing is due" in told(seen(60.0), "--yes")


def test_gc_on_an_empty_redis_says_that_it_knows_nothing(place: Place) -> None:
    code, _, err = place.run("gc", "--foreign", "--yes")
    assert code == 0
    assert "knows of no rollout, so nothing was searched" in err and "changeover rebuild FILE" in err


def test_gc_that_could_not_read_something_ends_with_3(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.applied()
    spoil(place, monkeypatch, "web-2")
    code, out, _ = place.run("gc")
    assert code == 3 and "web-2 could not be read" in out
    assert place.json("gc")[0] == 3


def test_gc_says_what_a_settle_has_left_for_the_person(place: Place) -> None:
    id = place.applied()
    place.store.put_ledger(
        id, [LedgerItem(key="image:t", kind="image", server="web-1", state="quarantined", id="img-7")]
    )
    code, out, err = place.run("gc")
    assert code == 0
    assert "yours to delete" in out and "gc --yes then takes it off this list" in err


def test_a_refused_rebuild_says_how_to_lift_a_quarantine(place: Place) -> None:
    about = {"rollout": "r7", "server": "web-2", "name": "co-x", "state": "stopped", "quarantined": True}
    place.world.marked = (Found(kind="server", id="srv-9", **about),)  # type: ignore[arg-type] # words only
    code, _, err = place.run("rebuild", str(place.file))
    assert code == 1
    assert "server srv-9 (stopped, in quarantine)" in err
    assert "lift the quarantine" in err and "changeover:phase" in err


def test_an_unknown_rollout_is_a_usage_error(place: Place) -> None:
    place.applied()
    for verb in ("show", "watch", "events", "pause", "resume", "abort", "rollback", "retry"):
        code, out, err = place.run(verb, "r000")
        assert (code, out) == (64, "")
        assert "there is no rollout r000" in err
        assert "Next: changeover rollouts" in err


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("show",),
        ("show", "--bogus", "r1"),
        ("rollouts", "-o", "xml"),
        ("apply", "f", "--timeout", "0"),
    ],
)
def test_wrong_usage_ends_with_64(place: Place, words: tuple[str, ...]) -> None:
    code, out, err = place.run(*words)
    assert code == 64
    assert out == ""
    assert err


def test_saying_nothing_shows_what_can_be_said(place: Place) -> None:
    code, out, _ = place.run()
    assert code == 64
    assert all(command in out for command in ("plan", "apply", "demo", "up", "rollback"))


def test_what_nobody_expected_is_one_line_unless_debugging(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> Any:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(operations, "view", broken)
    code, out, err = place.run("show", "r1")
    assert code == 1
    assert out == ""
    assert "something unexpected happened: ZeroDivisionError: oops" in err
    assert "CHANGEOVER_DEBUG=1" in err


# -- the real program ------------------------------------------------------------------------------------------------


def test_without_redis_it_ends_with_69_and_says_what_to_do(tmp_path: Path) -> None:
    nothing = changeover("rollouts", env={"CHANGEOVER_STATE_DIR": str(tmp_path)})
    assert (nothing.returncode, nothing.stdout) == (69, "")
    assert "Next: changeover up" in nothing.stderr
    away = changeover("rollouts", env={"CHANGEOVER_REDIS_URL": f"unix://{tmp_path}/none.sock?db=0"})
    assert (away.returncode, away.stdout) == (69, "")
    assert "does not answer" in away.stderr
    assert "Traceback" not in away.stderr


def test_a_wrong_password_is_said_plainly_and_never_repeated() -> None:
    with running_valkey("--requirepass", "right-one") as valkey:
        url = valkey.url.replace("unix://", "unix://:wrong-one@")
        told = changeover("rollouts", env={"CHANGEOVER_REDIS_URL": url})
        assert told.returncode == 69
        assert "password" in told.stderr
        assert "wrong-one" not in told.stderr


def test_a_wrong_setting_names_its_variable() -> None:
    told = changeover("rollouts", env={"CHANGEOVER_LEASE": "soon"})
    assert told.returncode == 64
    assert "CHANGEOVER_LEASE" in told.stderr


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    code = "import sys; from orchestrator.cli import main; sys.exit(main())"
    script = f'{sys.executable} -P -c "{code}" version | true; echo "${{PIPESTATUS[0]}}"'
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.strip() in ("0", "141")
    assert ended.stderr == ""


def test_no_colour_where_there_is_no_terminal() -> None:
    told = changeover("show", "r1", env={"CHANGEOVER_REDIS_URL": "unix:///nowhere?db=0", "FORCE_COLOR": ""})
    assert "\x1b" not in told.stdout + told.stderr


# -- a record that cannot be read ------------------------------------------------------------------------------------


def test_one_record_that_cannot_be_read_leaves_every_verb_to_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = place.applied()
    at_step(place.store, id, "web-1", "smoke_test")
    at_step(place.store, id, "web-3", "swap")
    spoil(place, monkeypatch, "web-3")
    for words in (("pause", id), ("resume", id), ("abort", id), ("rollback", id), ("retry", id)):
        code, out, err = place.run(*words)
        assert code == 3, (words, err)
        assert "web-3 needs you: the Upgrade stored at sv:web-3 cannot be read" in out
        assert "nothing of ours touches it" in out
        assert f"changeover explain web-3 --rollout {id}" in out
        code, body = place.json(*words)
        assert (code, list(body["unread"])) == (3, ["web-3"])
    assert operations.find(place.store, id).state == "rolling_back"


def test_one_record_that_cannot_be_read_is_seen_wherever_its_rollout_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    id = place.applied()
    at_step(place.store, id, "web-3", "swap")
    spoil(place, monkeypatch, "web-3")
    for words in (("rollouts",), ("show", id), ("explain", "web-3")):
        code, out, _ = place.run(*words)
        assert code == 3
        assert "web-3" in out and "it is no JSON" in out and "Next: " in out
    code, body = place.json("rollouts")
    assert (code, list(body["unread"])) == (3, [f"{id}/web-3"])
    code, body = place.json("show", id)
    assert (code, list(body["unread"]), body["exit_code"]) == (3, ["web-3"], 3)
    assert [server["server"] for server in body["servers"]] == ["web-1", "web-2"]
    code, body = place.json("explain", "web-3")
    assert (code, body["server"]) == (3, None)
    assert body["unread"] and body["events"]
    code, out, err = place.run("report", id, "--out", str(tmp_path / "report"))
    assert code == 3 and "not in the report: web-3" in err


def test_watch_ends_where_only_a_record_that_cannot_be_read_is_left(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = place.applied()
    at_step(place.store, id, "web-3", "swap")
    spoil(place, monkeypatch, "web-3")
    monkeypatch.setattr(watching, "SETTLED", 0.05)
    code, out, _ = place.run("watch", id, "--timeout", "30")
    assert code == 3
    assert "web-3 needs you" in out
