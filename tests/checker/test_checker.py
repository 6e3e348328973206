"""The checker finds what is wrong in small evidence that was written by hand, and nothing where nothing is."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checker import __main__ as program
from tests.checker.check import check
from tests.checker.evidence import REQUIRED, Unusable
from tests.checker.small import small, write

Files = dict[str, Any]
Break = Callable[[Files], None]


def ids(folder: Path, files: Files) -> set[str]:
    return {violation.id for violation in check(write(folder, files))}


def test_clean_evidence_has_no_violation(tmp_path: Path) -> None:
    assert check(write(tmp_path, small())) == []


def _line(files: Files, name: str, **about: Any) -> dict[str, Any]:
    found = [line for line in files[name] if all(line.get(key) == value for key, value in about.items())]
    assert found, (name, about)
    line: dict[str, Any] = found[0]
    return line


def _drop(files: Files, name: str, **about: Any) -> None:
    files[name].remove(_line(files, name, **about))


def _entry(files: Files, server: str, event: str, step: str = "") -> dict[str, Any]:
    return next(
        line
        for line in files["audit.jsonl"]
        if (line["server"], line["event"]) == (server, event) and (not step or line["detail"].get("step") == step)
    )


# -- I1 ---------------------------------------------------------------------------------------------------------------


def too_few_serve(files: Files) -> None:
    files["balancer.jsonl"][3]["members"]["web-2"]["state"] = "down"


def a_user_is_failed(files: Files) -> None:
    files["traffic.jsonl"][3]["status"] = 503


def a_user_gets_no_answer(files: Files) -> None:
    files["traffic.jsonl"][3]["status"] = 0


def b_is_terminated_while_it_serves(files: Files) -> None:
    files["cloud.jsonl"].append({"at": 17.5, "call": "terminate", "id": "srv-web-1", "outcome": "done", "effect": True})


def nobody_looked_at_a_pool(files: Files) -> None:
    files["plan.json"]["pools"]["api"] = {"port": 81, "min_healthy": 1, "members": {}}


# -- I2 ---------------------------------------------------------------------------------------------------------------


def b_enters_without_a_smoke_test(files: Files) -> None:
    files["probes.jsonl"] = []


def b_enters_after_one_pass(files: Files) -> None:
    files["probes.jsonl"].pop(0)


def b_enters_before_its_smoke_test(files: Files) -> None:
    files["probes.jsonl"][1]["at"] = 9.5


def b_was_tested_in_another_boot(files: Files) -> None:
    files["cloud.jsonl"].insert(4, {"at": 8.5, "call": "start", "id": "srv-web-1", "boot": "2", "effect": False})


def b_has_started_anew_since_its_test(files: Files) -> None:
    files["incidents.jsonl"].append({"at": 8.5, "kind": "rebooted", "id": "srv-web-1", "boot": "2"})


def b_was_tested_long_ago(files: Files) -> None:
    files["plan.json"]["smoke_fresh_seconds"] = 1.0


def a_known_failure_between_two_passes(files: Files) -> None:
    files["probes.jsonl"].insert(1, {"at": 7.0, "address": "10.0.1.1", "boot": "1", "passed": False})
    _entry(files, "web-1", "Waits")["detail"]["notes"]["last"] = "answered 500"


def a_stranger_is_in_the_pool(files: Files) -> None:
    files["balancer.jsonl"][-1]["members"]["x"] = {"address": "10.9.9.9", "port": 80, "state": "serving"}


# -- I3 ---------------------------------------------------------------------------------------------------------------


def one_has_not_ended(files: Files) -> None:
    files["records.json"]["web-2"]["state"] = "held"


def a_of_a_failed_one_is_stopped(files: Files) -> None:
    _line(files, "inventory.json", id="a2")["state"] = "stopped"


def a_of_a_failed_one_is_in_no_pool(files: Files) -> None:
    del files["balancer.jsonl"][-1]["members"]["web-2"]


def b_of_a_failed_one_is_left(files: Files) -> None:
    thing = _line(files, "inventory.json", id="srv-web-1")
    tags = {**thing["tags"], "changeover:server": "web-2"}
    files["inventory.json"].append({**thing, "id": "srv-web-2", "address": "10.0.1.2", "tags": tags})


def b_of_an_upgraded_one_does_not_serve(files: Files) -> None:
    files["balancer.jsonl"][-1]["members"]["web-1.g2"]["state"] = "down"


def a_of_an_upgraded_one_is_gone_too_early(files: Files) -> None:
    _drop(files, "inventory.json", id="a1")


# -- I4 ---------------------------------------------------------------------------------------------------------------


def one_token_made_two(files: Files) -> None:
    made = _line(files, "cloud.jsonl", call="ensure_server")
    files["cloud.jsonl"].append({**made, "id": "srv-other"})


def one_attempt_made_two(files: Files) -> None:
    made = _line(files, "cloud.jsonl", call="ensure_server")
    files["cloud.jsonl"].append({**made, "id": "srv-other", "token": "random"})


def an_orphan_is_left(files: Files) -> None:
    _drop(files, "ledger.json", key="image:web-1-create_image")


def the_ledger_says_deleted_and_it_is_there(files: Files) -> None:
    _line(files, "ledger.json", key="image:web-1-create_image")["state"] = "deleted"


def the_ledger_says_live_and_it_is_gone(files: Files) -> None:
    _drop(files, "inventory.json", id="img-web-1")


def an_intended_one_is_never_settled(files: Files) -> None:
    _line(files, "ledger.json", key="image:web-2-create_image")["state"] = "intended"


def made_without_a_tag(files: Files) -> None:
    _line(files, "cloud.jsonl", call="ensure_image")["tags"] = {}


# -- I5 ---------------------------------------------------------------------------------------------------------------


def a_terminal_result_is_lost(files: Files) -> None:
    files["records.json"]["web-2"]["state"] = "running"


def an_accepted_server_has_no_record(files: Files) -> None:
    del files["records.json"]["web-2"]


def an_order_is_lost(files: Files) -> None:
    files["orders.json"]["stored"].remove("o1")


def an_order_is_stored_twice(files: Files) -> None:
    files["orders.json"]["stored"].append("o1")


def a_reported_result_is_unknown(files: Files) -> None:
    files["results.jsonl"][0]["task"] = "tasks.retire"


# -- I6 ---------------------------------------------------------------------------------------------------------------


def an_entry_is_missing(files: Files) -> None:
    files["audit.jsonl"].remove(_entry(files, "web-1", "Waits"))


def an_entry_stands_twice(files: Files) -> None:
    files["audit.jsonl"].insert(1, dict(_entry(files, "web-1", "Admitted")))


def time_goes_back(files: Files) -> None:
    _entry(files, "web-1", "Finished", "drain_old")["at"] = 1.0


def a_step_is_skipped(files: Files) -> None:
    """The smoke test is finished without having begun."""
    entry = _entry(files, "web-1", "Began", "smoke_test")
    entry["event"], entry["after"]["intent"] = "Waits", None


def a_move_that_is_not_legal(files: Files) -> None:
    _entry(files, "web-2", "TurnedBack")["event"] = "Waits"


def an_unknown_event(files: Files) -> None:
    _entry(files, "web-2", "TurnedBack")["event"] = "Invented"


def an_intent_is_forgotten(files: Files) -> None:
    """As when a worker that was frozen commits over what its successor has done."""
    _entry(files, "web-1", "Finished", "provision")["after"]["begun"].pop()


def a_result_is_forgotten(files: Files) -> None:
    del _entry(files, "web-1", "Finished", "provision")["after"]["results"]["create_image"]


def it_ends_with_something_begun(files: Files) -> None:
    entry = _entry(files, "web-2", "Undone", "provision")
    entry["now"] = entry["after"]["state"] = "failed"


def the_log_does_not_fold_to_the_record(files: Files) -> None:
    files["records.json"]["web-1"]["results"]["swap"] = {"since": 11.0}


def a_server_is_made_unannounced(files: Files) -> None:
    _line(files, "cloud.jsonl", id="srv-web-2", call="ensure_server")["token"] = "unheard of"


def a_is_stopped_unannounced(files: Files) -> None:
    _line(files, "cloud.jsonl", call="stop")["id"] = "a2"


def announced_after_it_was_done(files: Files) -> None:
    _line(files, "cloud.jsonl", id="srv-web-1", call="ensure_server")["at"] = 2.0


def it_goes_on_after_the_end(files: Files) -> None:
    files["audit.jsonl"][-1]["after"]["closed"] = True
    files["audit.jsonl"].insert(5, files["audit.jsonl"].pop())


def it_begins_while_paused(files: Files) -> None:
    place = files["audit.jsonl"].index(_entry(files, "web-1", "Began", "swap"))
    at = files["audit.jsonl"][place]["at"]
    pause = {**files["audit.jsonl"][-1], "at": at, "event": "paused", "was": "running", "now": "paused"}
    files["audit.jsonl"].insert(place, pause)
    files["audit.jsonl"][-1]["was"] = "paused"


def it_is_undone_while_frozen(files: Files) -> None:
    place = files["audit.jsonl"].index(_entry(files, "web-2", "UndoBegan", "provision"))
    at = files["audit.jsonl"][place]["at"]
    frozen = {**files["audit.jsonl"][-1], "at": at, "event": "frozen", "was": "running", "now": "running", "after": {}}
    files["audit.jsonl"].insert(place, frozen)


# -- I7 ---------------------------------------------------------------------------------------------------------------


def a_leaves_before_b_serves(files: Files) -> None:
    for line in files["balancer.jsonl"]:
        line["members"].pop("web-1.g2", None)


def a_leaves_though_b_has_fallen(files: Files) -> None:
    for line in files["balancer.jsonl"][2:]:
        line["members"]["web-2"]["state"] = "serving"
    fallen = {**files["balancer.jsonl"][2], "at": 14.0}
    fallen["members"] = {**fallen["members"], "web-1.g2": {**fallen["members"]["web-1.g2"], "state": "down"}}
    files["balancer.jsonl"].insert(3, fallen)
    files["cloud.jsonl"][7]["at"] = 15.0


def a_leaves_before_the_soak_is_over(files: Files) -> None:
    files["balancer.jsonl"][2]["at"] = 11.5


def a_is_terminated_too_early(files: Files) -> None:
    files["cloud.jsonl"].append({"at": 70.0, "call": "terminate", "id": "a1", "outcome": "done", "effect": True})


# -- I8 ---------------------------------------------------------------------------------------------------------------


def two_rollouts_own_one_server(files: Files) -> None:
    created = files["audit.jsonl"][0]
    files["audit.jsonl"].append({**created, "rollout": "r2", "at": 5.0})


def two_servers_own_one_b(files: Files) -> None:
    files["records.json"]["web-2"]["results"]["provision"]["server"] = "srv-web-1"


def one_fence_is_given_twice(files: Files) -> None:
    claim = {"rollout": "r1", "server": "web-1", "fence": 7}
    files["claims.jsonl"] = [{"at": 5.0, "owner": "w1/1:a", **claim}, {"at": 6.0, "owner": "w2/2:b", **claim}]


# -- I9 and I10 -------------------------------------------------------------------------------------------------------


def a_user_is_failed_without_a_control_plane(files: Files) -> None:
    files["traffic.jsonl"][11]["status"] = 502


def nobody_asked_without_a_control_plane(files: Files) -> None:
    files["incidents.jsonl"][0] |= {"at": 100.0, "until": 200.0}


def a_secret_in_the_log(files: Files) -> None:
    files["audit.jsonl"][3]["detail"]["why"] = "login with correct-horse-battery failed"


def a_secret_in_disguise(files: Files) -> None:
    hidden = base64.b64encode(b"Basic admin:correct-horse-battery").decode()
    files["results.jsonl"][0]["result"]["headers"] = hidden


BREAKS: dict[str, tuple[Break, ...]] = {
    "I1": (
        too_few_serve,
        a_user_is_failed,
        a_user_gets_no_answer,
        b_is_terminated_while_it_serves,
        nobody_looked_at_a_pool,
    ),
    "I2": (
        b_enters_without_a_smoke_test,
        b_enters_after_one_pass,
        b_enters_before_its_smoke_test,
        b_was_tested_in_another_boot,
        b_has_started_anew_since_its_test,
        b_was_tested_long_ago,
        a_known_failure_between_two_passes,
        a_stranger_is_in_the_pool,
    ),
    "I3": (
        one_has_not_ended,
        a_of_a_failed_one_is_stopped,
        a_of_a_failed_one_is_in_no_pool,
        b_of_a_failed_one_is_left,
        b_of_an_upgraded_one_does_not_serve,
        a_of_an_upgraded_one_is_gone_too_early,
    ),
    "I4": (
        one_token_made_two,
        one_attempt_made_two,
        an_orphan_is_left,
        the_ledger_says_deleted_and_it_is_there,
        the_ledger_says_live_and_it_is_gone,
        an_intended_one_is_never_settled,
        made_without_a_tag,
    ),
    "I5": (
        a_terminal_result_is_lost,
        an_accepted_server_has_no_record,
        an_order_is_lost,
        an_order_is_stored_twice,
        a_reported_result_is_unknown,
    ),
    "I6": (
        an_entry_is_missing,
        an_entry_stands_twice,
        time_goes_back,
        a_step_is_skipped,
        a_move_that_is_not_legal,
        an_unknown_event,
        an_intent_is_forgotten,
        a_result_is_forgotten,
        it_ends_with_something_begun,
        the_log_does_not_fold_to_the_record,
        a_server_is_made_unannounced,
        a_is_stopped_unannounced,
        announced_after_it_was_done,
        it_goes_on_after_the_end,
        it_begins_while_paused,
        it_is_undone_while_frozen,
    ),
    "I7": (
        a_leaves_before_b_serves,
        a_leaves_though_b_has_fallen,
        a_leaves_before_the_soak_is_over,
        a_is_terminated_too_early,
    ),
    "I8": (two_rollouts_own_one_server, two_servers_own_one_b, one_fence_is_given_twice),
    "I9": (a_user_is_failed_without_a_control_plane, nobody_asked_without_a_control_plane),
    "I10": (a_secret_in_the_log, a_secret_in_disguise),
}
CASES = [pytest.param(id, breaks, id=f"{id}-{breaks.__name__}") for id, each in BREAKS.items() for breaks in each]


@pytest.mark.parametrize(("id", "breaks"), CASES)
def test_a_broken_promise_is_found(id: str, breaks: Break, tmp_path: Path) -> None:
    files = small()
    breaks(files)
    assert id in ids(tmp_path, files)


# -- what is not held against the product ----------------------------------------------------------------------------


def test_what_the_test_itself_took_away_is_not_missed(tmp_path: Path) -> None:
    files = small()
    too_few_serve(files)
    files["incidents.jsonl"].append({"at": 12.0, "kind": "lost", "id": "a2", "until": 15.9})
    assert ids(tmp_path, files) == set()


def test_a_loss_ends_where_it_ended(tmp_path: Path) -> None:
    files = small()
    too_few_serve(files)
    files["incidents.jsonl"].append({"at": 12.0, "kind": "lost", "id": "a2", "until": 13.0})
    assert ids(tmp_path, files) == {"I1"}


def test_an_intent_that_the_store_has_lost_is_not_missed(tmp_path: Path) -> None:
    files = small()
    announced_after_it_was_done(files)
    files["incidents.jsonl"].append({"at": 2.5, "kind": "store lost", "since": 1.5})
    assert ids(tmp_path, files) == set()


def test_what_was_rebuilt_from_the_world_is_judged_from_there(tmp_path: Path) -> None:
    """Redis has lost everything: web-1 is known again as upgraded, and of web-2 nobody can say where it stands."""
    files = small()
    created = {**files["audit.jsonl"][0], "at": 20.0, "now": "paused", "after": {"state": "paused"}}
    rebuilt = {**_entry(files, "web-1", "Admitted"), "at": 20.0, "event": "Rebuilt", "after": {}}
    files["audit.jsonl"] = [created, {**rebuilt, "was": "upgraded", "now": "upgraded"}]
    files["results.jsonl"] = []
    del files["records.json"]["web-2"]
    files["incidents.jsonl"] += [
        {"at": 19.0, "kind": "store lost", "since": 0.0},
        {"at": 19.5, "kind": "left out", "server": "web-2"},
    ]
    assert ids(tmp_path, files) == set()


def test_a_member_that_somebody_else_took_out_is_not_missed(tmp_path: Path) -> None:
    files = small()
    gone = {**files["balancer.jsonl"][-1]["members"]}
    del gone["web-1.g2"]
    files["balancer.jsonl"].append({"at": 18.0, "pool": "web", "members": gone})
    files["incidents.jsonl"].append({"at": 18.0, "kind": "member lost", "pool": "web", "id": "web-1.g2"})
    assert ids(tmp_path, files) == set()


def test_a_failure_that_nobody_lived_to_tell_is_not_counted(tmp_path: Path) -> None:
    files = small()
    files["probes.jsonl"].insert(1, {"at": 7.0, "address": "10.0.1.1", "boot": "1", "passed": False})
    assert ids(tmp_path, files) == set()


def test_what_a_look_brought_may_differ(tmp_path: Path) -> None:
    files = small()
    files["records.json"]["web-1"]["seen"] = {"kind": "idle"}
    assert ids(tmp_path, files) == set()


def test_a_note_changes_nothing(tmp_path: Path) -> None:
    files = small()
    last = _entry(files, "web-1", "Finished", "drain_old")
    note = {**last, "n": last["n"] + 1, "event": "inspected", "was": "upgraded", "now": "upgraded", "after": {}}
    files["audit.jsonl"].insert(-1, note)
    assert ids(tmp_path, files) == set()


def test_what_a_person_has_settled_is_theirs_to_end(tmp_path: Path) -> None:
    """web-2 was held in its undo, and a person said: its A serves. What was made for it is set aside."""
    files = small()
    entry = _entry(files, "web-2", "UndoBegan", "create_image")
    files["audit.jsonl"].remove(_entry(files, "web-2", "Undone", "create_image"))
    held = {**entry, "n": entry["n"] + 1, "event": "Held", "now": "held", "after": {**entry["after"], "state": "held"}}
    after = {**entry["after"], "state": "rolled_back", "by_hand": "seen", "asked": True}
    settled = {**held, "n": held["n"] + 1, "event": "Settled", "was": "held", "now": "rolled_back", "after": after}
    files["audit.jsonl"][-1:-1] = [held, settled]
    files["records.json"]["web-2"] = after
    assert ids(tmp_path, files) == set()


def test_a_held_server_is_no_end_unless_nobody_answers(tmp_path: Path) -> None:
    files = small()
    entry = _entry(files, "web-2", "Undone", "create_image")
    after = {**entry["after"], "state": "held", "why": "its A does not start"}
    entry.update({"event": "Held", "now": "held", "after": after})
    files["records.json"]["web-2"] = after
    assert "I3" in ids(tmp_path, files)
    files["incidents.jsonl"].append({"at": 19.0, "kind": "given up"})
    assert ids(tmp_path, files) == set()


# -- the program ------------------------------------------------------------------------------------------------------


def test_the_program_prints_each_violation_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = small()
    an_order_is_lost(files)
    assert program.main([str(write(tmp_path, files))]) == 1
    told = capsys.readouterr().out
    assert told == "I5 orders.json: order o1 was answered with success and is stored 0 times\n1 violation\n"


def test_the_program_ends_well_over_clean_evidence(tmp_path: Path) -> None:
    assert program.main([str(write(tmp_path, small()))]) == 0


@pytest.mark.parametrize("name", REQUIRED)
def test_without_evidence_nothing_is_said_to_be_well(name: str, tmp_path: Path) -> None:
    write(tmp_path, small())
    (tmp_path / name).unlink()
    with pytest.raises(Unusable, match=name):
        check(tmp_path)
    assert program.main([str(tmp_path)]) == 2


def test_a_torn_line_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, small())
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write(json.dumps({"rollout": "r1"})[:-3])
    with pytest.raises(Unusable, match=r"audit\.jsonl:\d+"):
        check(tmp_path)
