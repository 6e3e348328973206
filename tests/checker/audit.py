"""I5 and I6: what the audit log tells is complete, legal, announced before it happened, and still what is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.checker.evidence import SKEW, Evidence, Line, Violation

STEPS = ("create_image", "provision", "poll_readiness", "smoke_test", "swap", "drain_old")
RETIRE = "retire"
TERMINAL = ("upgraded", "rolled_back", "failed")
# Event -> the states between which it may lead. An upgraded server stays so while its old one is retired.
MOVES: Mapping[str, frozenset[tuple[str, str]]] = {
    event: frozenset((was, now) for was in before.split() for now in after.split())
    for event, before, after in (
        ("Admitted", "pending", "running"),
        ("Began", "running waiting", "running"),
        ("UndoBegan", "running waiting", "running"),
        ("Waits", "running waiting", "waiting"),
        ("Stumbled", "running waiting", "waiting"),
        ("AttemptEnded", "running waiting", "waiting"),
        ("Finished", "running waiting", "running waiting upgraded"),
        ("Undone", "running waiting", "running rolled_back failed"),
        ("TurnedBack", "pending running waiting held upgraded", "running waiting rolled_back failed"),
        ("Held", "running waiting", "held"),
        ("Released", "held", "waiting"),
        ("Settled", "held upgraded", "upgraded rolled_back"),
        ("Shifted", "pending running waiting held", "pending running waiting held"),
    )
}
RETIRING = ("Began", "Waits", "Stumbled", "Finished")  # may happen to an upgraded server and leave it upgraded
LOOKED_AFTER = ("Ailed", "Recovered", "Repaired")  # what was seen, or put right, in the pools: nothing moves by it
ANEW = (("failed", "pending"), ("rolled_back", "pending"))  # a person lets one begin again


@dataclass(frozen=True, kw_only=True)
class Position:
    """What one `after` says of where the server is."""

    state: str = "pending"
    direction: str = "forward"
    step: str = STEPS[0]
    intent: str = ""
    begun: tuple[tuple[str, str], ...] = ()
    finished: frozenset[str] = frozenset()
    attempts: Mapping[str, int]
    undoing: str = ""
    life: int = 1
    gone: bool = False

    @classmethod
    def of(cls, after: Mapping[str, Any]) -> Position:
        intent = after.get("intent") or {}
        return cls(
            state=after.get("state", "pending"),
            direction=after.get("direction", "forward"),
            step=after.get("step", STEPS[0]),
            intent=intent.get("step", ""),
            begun=tuple((begun["step"], begun["token"]) for begun in after.get("begun", ())),
            finished=frozenset(after.get("results", {})),
            attempts=dict(after.get("attempts", {})),
            undoing=after.get("undoing", ""),
            life=after.get("life", 1),
            gone=after.get("old_gone", False),
        )

    def has_begun(self, step: str) -> bool:
        return any(begun == step for begun, _ in self.begun)


def complete_and_legal(e: Evidence) -> Iterator[Violation]:
    """I6: entries without a gap, in time's order, each a legal move from the one before."""
    yield from _rollout_itself(e)
    yield from _nothing_begins(e)
    for server in e.servers:
        tokens: set[str] = set()
        was: Position | None = Position(attempts={})
        last = Line(n=0, at=0.0, now="pending")
        for line in e.entries(server):
            if line["event"] == "Rebuilt":  # after Redis had lost everything: what was before is told by nobody
                was, last = None, Line(n=line["n"] - 1, at=line.at, now=line["was"])
            for problem in (*_in_order(last, line), *(_legal(was, line, tokens) if was else ())):
                yield Violation(id="I6", where=line.where, says=f"{server}, entry {line['n']}: {problem}")
            last = line
            if line["after"]:
                found, was = was is None, Position.of(line["after"])
                # What was under way when all was lost counts as begun, and is announced once more by whoever does it.
                tokens.update(token for step, token in was.begun if not (found and step == was.step))


def _rollout_itself(e: Evidence) -> Iterator[Violation]:
    last, closed = Line(at=0.0, now=""), ""
    for line in e.audit:
        if line["rollout"] != e.rollout:
            continue
        if closed and line["server"] and line["after"]:
            says = f"{line['server']} was changed ({line['event']}) after the rollout had been closed at {closed}"
            yield Violation(id="I6", where=line.where, says=says)
        if line["server"]:
            continue
        if line["was"] != last["now"]:
            says = f"the rollout was {line['was']!r} before {line['event']}, and {last['now']!r} after the entry before"
            yield Violation(id="I6", where=line.where, says=says)
        if line.at < last.at:
            yield Violation(id="I6", where=line.where, says=f"its time goes back by {last.at - line.at:.6f} s")
        last = line
        if line["after"].get("closed"):
            closed = line.where


def _nothing_begins(e: Evidence) -> Iterator[Violation]:
    """Once a freeze, a pause or an abort is written, nothing new begins; only a freeze keeps an undo back."""
    state, frozen = "", False
    for line in e.audit:
        if line["rollout"] != e.rollout:
            continue
        if not line["server"]:
            state = line["now"]
            frozen = (frozen or line["event"] == "frozen") and line["event"] != "unfrozen"
            continue
        if line["event"] not in (FORWARD, UNDO):
            continue
        now = Position.of(line["after"])
        if line["event"] == UNDO:
            allowed = True
        elif now.step == RETIRE:
            allowed = state not in ("paused", "aborting", "rolling_back")
        else:
            finishes = state == "aborting" and now.has_begun("swap")
            allowed = state in ("running", "baking", "awaiting_approval", "awaiting_window") or finishes
        if frozen or not allowed:
            told = "everything is frozen" if frozen else f"the rollout is {state}"
            says = f"{line['server']} begins {line['detail'].get('step')} while {told}"
            yield Violation(id="I6", where=line.where, says=says)


def _in_order(last: Line, line: Line) -> Iterator[str]:
    if line["n"] != last["n"] + 1:
        yield f"follows entry {last['n']}: the log has a gap, or an entry twice"
    if line.at < last.at:
        yield f"its time goes back by {last.at - line.at:.6f} s"
    if line["was"] != last["now"]:
        yield f"says that the server was {line['was']}, the entry before left it {last['now']}"


def _legal(was: Position, line: Line, tokens: set[str]) -> Iterator[str]:
    """What is wrong with this move; entries without a record are notes, and change nothing."""
    event, move = line["event"], (line["was"], line["now"])
    if not line["after"]:
        if move[0] != move[1]:
            yield f"the note {event} comes without a record, and yet the state moves to {move[1]}"
        return
    now = Position.of(line["after"])
    if now.state != line["now"]:
        yield f"says {line['now']}, its record says {now.state}"
    if event not in MOVES and event not in LOOKED_AFTER:
        yield f"no such event is known: {event}"
        return
    retiring = move == ("upgraded", "upgraded") and event in RETIRING
    anew = event == "Released" and move in ANEW
    resting = event in LOOKED_AFTER and move[0] == move[1]
    if not (retiring or anew or resting or move in MOVES.get(event, ())):
        yield f"{event} may not lead from {move[0]} to {move[1]}"
        return
    yield from _life(was, now, anew)
    if not anew:
        yield from _begun(was, now, event, tokens)
        yield from _steps(was, now, event)
        yield from _counts(was, now, event)


def _life(was: Position, now: Position, anew: bool) -> Iterator[str]:
    if now.life != was.life + anew:
        yield f"it is its life number {now.life} after number {was.life}"
    if anew and (now.begun or now.finished or now.direction != "forward" or now.step != STEPS[0]):
        yield "it begins anew and keeps something of its former life"
    if anew and any(now.attempts.get(step, 0) <= was.attempts.get(step, 0) for step, _ in was.begun):
        yield "it begins anew with attempts whose tokens stand for what was destroyed"


def _begun(was: Position, now: Position, event: str, tokens: set[str]) -> Iterator[str]:
    """Intents are only ever added, by Began, one at a time, each with a token of its own."""
    if event != "Began":
        if now.begun != was.begun:
            yield f"{event} changes what was begun: {_names(was.begun)} becomes {_names(now.begun)}"
        return
    if now.begun[:-1] != was.begun:
        yield f"{_names(now.begun)} is not what was begun before ({_names(was.begun)}) and one more"
        return
    step, token = now.begun[-1]
    if token in tokens:
        yield f"the token of {step} has been used before"
    if was.intent:
        yield f"{step} begins while {was.intent} is under way"
    if (step, now.intent) != (now.step, now.step):
        yield f"it begins {step} at step {now.step}"
    before = STEPS if step == RETIRE else STEPS[: STEPS.index(step)]
    if missing := [name for name in before if name not in was.finished]:
        yield f"{step} begins before {missing[0]} has finished"


def _steps(was: Position, now: Position, event: str) -> Iterator[str]:
    step, direction, finished = was.step, was.direction, was.finished
    match event:
        case "Finished":
            if was.intent != was.step:
                yield f"{was.step} finishes without having begun"
            finished = finished | {was.step}
            if was.step != RETIRE:
                step = (*STEPS, RETIRE)[STEPS.index(was.step) + 1]
            if (now.state == "upgraded") != (was.step in (STEPS[-1], RETIRE)):
                yield f"{was.step} finishes and leaves it {now.state}"
            if now.gone != (was.step == RETIRE):
                yield "whether A is gone does not follow from the step"
        case "TurnedBack":
            if was.has_begun(RETIRE):
                yield "it turns back after the point of no return"
            if was.direction == "forward":
                direction = "undo"
                step = next((name for name in reversed(STEPS) if was.has_begun(name)), was.step)
            if was.begun and now.state in TERMINAL:
                yield "it ends at once, with things begun that nobody has undone"
        case "AttemptEnded" if now.step in was.finished and not was.has_begun("swap"):  # what it had made is gone
            step, finished = now.step, finished - set(_again(was, now))
        case "Settled":  # a person ends it as it stands
            step = was.step if was.step in STEPS else STEPS[-1]
            direction, step = ("forward", RETIRE) if now.state == "upgraded" else ("undo", step)
            if was.has_begun(RETIRE):
                yield "it is settled after the point of no return"
        case "UndoBegan":
            if was.direction != "undo" or now.undoing != was.step:
                yield f"the undo of {now.undoing or 'nothing'} begins at {was.step} ({was.direction})"
        case "Undone":
            if was.direction != "undo" or was.undoing != was.step:
                yield f"{was.step} is undone without its undo having begun"
            left = [name for name in STEPS[: STEPS.index(was.step)] if was.has_begun(name)]
            step = left[-1] if left else was.step
            if (now.state in TERMINAL) != (not left):
                yield f"{was.step} is undone, {', '.join(left) or 'nothing'} is left, and it is {now.state}"
    if now.step != step:
        yield f"{event} leads from {was.step} to {now.step}, not to {step}"
    if now.direction != direction:
        yield f"{event} leaves the direction {now.direction}, not {direction}"
    if now.finished != finished:
        yield f"{event} leaves the results of {', '.join(sorted(now.finished)) or 'nothing'}"


def _counts(was: Position, now: Position, event: str) -> Iterator[str]:
    expected = dict(was.attempts)
    if event == "AttemptEnded":
        expected |= {step: expected.get(step, 0) + 1 for step in _again(was, now)}
    used_up = {**was.attempts, was.step: was.attempts.get(was.step, 0) + 1}
    if now.attempts != expected and not (event == "TurnedBack" and was.intent and now.attempts == used_up):
        yield f"{event} leaves the attempts {dict(now.attempts)}, not {expected}"


def _again(was: Position, now: Position) -> Sequence[str]:
    """The steps of which a new attempt begins: the due one, or those from an earlier one on."""
    if now.step not in was.finished or {now.step, was.step} - set(STEPS):
        return (was.step,)
    return STEPS[STEPS.index(now.step) : STEPS.index(was.step) + 1]


def _names(begun: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(step for step, _ in begun) or "nothing"


# -- intents before effects ------------------------------------------------------------------------------------------

FORWARD, UNDO = "Began", "UndoBegan"
ANY = (UNDO, "")  # the undo of whichever step
# What must have been announced before a call has its effect on a server's A, its B, or its image. A second intent of
# a step ends what the first may have left; what is found out of its place is put back by whoever looks after the pools.
ANNOUNCED: Mapping[tuple[str, str], frozenset[tuple[str, str]]] = {
    ("add", "B"): frozenset({(FORWARD, "swap")}),
    ("restore", "B"): frozenset({(FORWARD, "swap")}),
    ("restore", "A"): frozenset({ANY}),
    ("remove", "A"): frozenset({(FORWARD, "drain_old")}),
    ("remove", "B"): frozenset({(UNDO, "swap")}),
    ("stop", "A"): frozenset({(FORWARD, "drain_old")}),
    ("start", "A"): frozenset({(UNDO, "drain_old")}),
    ("protect", "A"): frozenset({(UNDO, "drain_old"), (FORWARD, "drain_old")}),
    ("tag", "A"): frozenset({ANY, (FORWARD, RETIRE)}),
    ("terminate", "A"): frozenset({(FORWARD, RETIRE)}),
    ("terminate", "B"): frozenset({(UNDO, "provision"), (FORWARD, "provision")}),
    ("delete_image", "image"): frozenset({(UNDO, "create_image"), (FORWARD, RETIRE), (FORWARD, "create_image")}),
}


def announced_before_done(e: Evidence) -> Iterator[Violation]:
    """I6: an intent before every effect."""
    tokens = {
        begun["token"]: line
        for line in reversed(e.audit)
        if line["event"] == FORWARD
        for begun in line["after"].get("begun", ())[-1:]
    }
    for line in e.effects():
        if e.lost(line.at):
            continue
        if line.get("token"):
            announced = tokens.get(line["token"])
            if announced is None or announced.at > line.at + SKEW:
                says = f"{line['call']} made {line['id']} under a token that no intent had announced"
                yield Violation(id="I6", where=line.where, says=says)
            continue
        server, role = _whose(e, line)
        wanted = ANNOUNCED.get((line["call"], role), frozenset())
        if not server or (not wanted and not _was_orphaned(e, line)):
            says = f"{line['call']} of {line['id']}: nothing that a step of this rollout does"
            yield Violation(id="I6", where=line.where, says=says)
        elif not _was_announced(e, server, wanted, line.at) and not _was_orphaned(e, line):
            steps = " or ".join(f"{event} {step}" for event, step in sorted(wanted))
            says = f"{line['call']} of {line['id']} ({role} of {server}) without {steps} in the log before it"
            yield Violation(id="I6", where=line.where, says=says)


def _whose(e: Evidence, line: Line) -> tuple[str, str]:
    """The server, and what of it was changed: A, B or image."""
    id = line["id"]
    if line.get("pool"):
        made = e.new_addresses.get(line.get("address", ""))
        return (e.server_of(made), "B") if made else (e.seats.get((line["pool"], id), ""), "A")
    if id in e.old:
        return e.old[id], "A"
    making = e.made.get(id)
    return e.server_of(id), "image" if making is not None and making["call"] == "ensure_image" else "B"


def _was_announced(e: Evidence, server: str, wanted: frozenset[tuple[str, str]], at: float) -> bool:
    told = [
        (line["event"], line["detail"].get("step"))
        for line in e.entries(server)
        if line.at <= at + SKEW and line["event"] in (FORWARD, UNDO)
    ]
    return any(each in wanted or (ANY in wanted and each[0] == UNDO) for each in told)


def _was_orphaned(e: Evidence, line: Line) -> bool:
    """Nobody accounted for it, and that was written down before it was put aside or ended."""
    noted = {"stop": ("Quarantined",), "tag": ("Quarantined",)}.get(line["call"], ("Quarantined", "OrphanDeleted"))
    return line["call"] in ("stop", "tag", "terminate", "delete_image") and any(
        entry["event"] in noted and entry["detail"].get("id") == line["id"] and entry.at <= line.at + SKEW
        for entry in e.audit
    )


# -- nothing lost ----------------------------------------------------------------------------------------------------

VOLATILE = ("seen",)  # what a look brought is kept on the record without an entry


def nothing_is_lost(e: Evidence) -> Iterator[Violation]:
    """I5, and the end of I6: the log folds to the record; what was reported as done is in it; orders are exact."""
    for server in e.servers:
        record = e.records.get(server)
        if record is None:
            yield Violation(id="I5", where="records.json", says=f"{server} was accepted and has no record")
            continue
        entries = e.entries(server)
        last = next((line for line in reversed(entries) if line["after"]), None)
        if last is None and any(line["event"] == "Rebuilt" for line in entries):
            continue  # its record was told by the world, and nothing has happened to it since
        told = {} if last is None else dict(last["after"])
        where = "records.json" if last is None else last.where
        was, now = told.get("state", "pending"), record.get("state", "pending")
        if was in TERMINAL and now != was:
            yield Violation(id="I5", where=where, says=f"{server} had ended {was}, its record says {now}")
        elif different := _differences(told, record) if last is not None else _unaccounted(record):
            says = f"{server}: the log does not fold to the record, {', '.join(different)} differ"
            yield Violation(id="I6", where=where, says=says)
    yield from _reported(e)
    yield from _ordered(e)


def _differences(told: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    return sorted(
        key
        for key in {*told, *record} - {*VOLATILE}
        if _without_time(key, told.get(key)) != _without_time(key, record.get(key))
    )


def _without_time(key: str, value: Any) -> Any:
    """When it is looked at next is moved by looks."""
    return {k: v for k, v in value.items() if k != "at"} if key == "wait" and isinstance(value, dict) else value


def _unaccounted(record: Mapping[str, Any]) -> list[str]:
    """What no entry tells of, in the record of a server without any."""
    return ["state"] if record.get("state", "pending") != "pending" else []


def _reported(e: Evidence) -> Iterator[Violation]:
    """What Celery has kept as done is told by the log."""
    done = {
        (line["server"], ("undo_" if line["event"] == "Undone" else "") + str(line["detail"].get("step")))
        for line in e.audit
        if line["event"] in ("Finished", "Undone")
    }
    for line in e.results:
        told = (line["server"], line["task"].removeprefix("tasks."))
        result = line["result"]
        if isinstance(result, dict) and result.get("step") == "done" and told not in done and not e.lost(line.at):
            says = f"{told[1]} of {told[0]} was reported as done, and the log knows nothing of it"
            yield Violation(id="I5", where=line.where, says=says)


def _ordered(e: Evidence) -> Iterator[Violation]:
    if e.orders is None:
        return
    stored = Counter(e.orders["stored"])
    for order in e.orders["sent"]:
        if stored[order] != 1:
            says = f"order {order} was answered with success and is stored {stored[order]} times"
            yield Violation(id="I5", where="orders.json", says=says)
