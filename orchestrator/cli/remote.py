"""The same commands where `CHANGEOVER_URL` is set: they ask the API there, by the client that programs use too.

`--output json` prints the API's own documents, which are those of the command line. Text is short: what a person at a
pipeline needs. Each function takes what its namesake beside Redis takes (held by a test).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orchestrator import documents, words
from orchestrator.cli import output, session
from orchestrator.cli.output import NEEDS_YOU, Format
from orchestrator.errors import BadInput, NotFound, WaitTimeout

if TYPE_CHECKING:
    from orchestrator.api.client import Client

SERVES = "every server serves by its old or its new one"
SETTLED = 2.0  # seconds for which nothing but held servers must be under way, before a person is needed
LOOK = 5.0  # seconds after which a rollout without news is looked at


def _emit(document: Mapping[str, Any]) -> None:
    print(json.dumps(document), flush=True)


# -- from a fleet file to a rollout ------------------------------------------------------------------------------------


def plan(file: Path, detailed_exitcode: bool, out: Path | None, timeout: float, form: Format) -> int:
    from orchestrator import fleet_file

    fleet_file.load(file)  # its faults are told with their lines
    with session.api(timeout) as client:
        made = client.plan(fleet_file.text_of(file))
    if out is not None:
        try:
            out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise BadInput(
                f"cannot be written: {error.strerror}", place=str(out), next="choose another --out"
            ) from None
    _emit(made) if form is Format.json else _tell_plan(made)
    if made["blockers"]:
        output.say("This plan cannot be applied before its blockers are mended.")
        output.say("Traffic: unchanged; nothing was created")
        return 1
    if form is Format.text:
        output.say(f"Next: changeover apply {file} --plan {made['id']}")
    return 2 if detailed_exitcode and made["changes"] else 0


def _tell_plan(made: documents.Plan) -> None:
    soaks, calls = words.span(made["least_seconds"]), f"{made['provider_calls']:,}"
    output.tell(f"Plan {made['id']}  {made['fleet']}")
    waves = words.many(len(made["waves"]), "wave")
    changes = words.many(made["changes"], "server")
    takes = f"at least {soaks} of soaking and baking, about {calls} provider calls"
    output.tell(f"{changes} to replace in {waves}, {takes}")
    for number, wave in enumerate(made["waves"], 1):
        more = f" and {len(wave) - 10} more" if len(wave) > 10 else ""
        output.tell(f"  wave {number}: {', '.join(wave[:10])}{more}")
    for title, lines in (("Blockers", made["blockers"]), ("To know", made["caveats"])):
        for line in [f"{title}:", *(f"  {each}" for each in lines)] if lines else ():
            output.tell(line)


def apply(file: Path, plan_id: str, watch: bool, yes: bool, timeout: float, form: Format) -> int:
    from orchestrator import fleet_file

    fleet_file.load(file)
    text = fleet_file.text_of(file)
    if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadInput(
            "nobody is there to say yes: this is no terminal", place="apply", next=f"changeover apply {file} --yes"
        )
    with session.api(timeout) as client:
        if not yes:
            agreed = client.would_start(plan=plan_id) if plan_id else client.would_start(fleet_file=text)
            _tell_plan(agreed)
            asked = f"\nReplace {words.many(agreed['changes'], 'server')} as planned?"
            if not typer.confirm(asked, default=False, err=True):
                output.say("Not applied; nothing was created. Traffic: unchanged.")
                return 1
            plan_id = plan_id or agreed["id"]
        made = client.start(plan=plan_id) if plan_id else client.start(fleet_file=text)
        rollout = made["rollout"]
        if form is Format.json:
            _emit(made)
        else:
            number, waves = sum(map(len, rollout["waves"])), len(rollout["waves"])
            size = f"{words.many(number, 'server')} in {words.many(waves, 'wave')}"
            output.tell(f"Rollout {rollout['id']} has begun: {size}.")
            output.say_unconfirmed(
                made["confirmed"], "To apply again is safe: as long as this one is known, it is refused."
            )
        if watch:
            return _follow(client, rollout["id"], form, None)
        if form is Format.text:
            output.say(f"Traffic: {SERVES}; each is replaced only after its new one is proven.\nNext: {made['next']}")
    return 0


# -- to look -----------------------------------------------------------------------------------------------------------


def rollouts(form: Format) -> int:
    with session.api() as client:
        found = client.rollouts()
    if form is Format.json:
        _emit(found)
        return NEEDS_YOU if found["unread"] else 0
    if found["frozen"] is not None:
        output.tell(f"FROZEN: no step begins anywhere: {found['frozen']}")
    for r in found["rollouts"]:
        counts = ", ".join(f"{number} {state}" for state, number in r["counts"].items())
        why = f"  {r['why']}" if r["why"] else ""
        output.tell(f"{r['id']}  {r['fleet']:<20}  {r['state']:<17}  {words.moment(r['created_at'])}  {counts}{why}")
    for what, why in found["unread"].items():
        output.tell(f"{what} cannot be read: {why}")
    if not found["rollouts"]:
        output.say("No rollout that this token may see.\nNext: changeover plan FILE")
    return NEEDS_YOU if found["unread"] else 0


def show(id: str, servers: bool, form: Format) -> int:
    with session.api() as client:
        found = client.rollout(id)
    _emit(found) if form is Format.json else _tell_rollout(found, servers=servers)
    return NEEDS_YOU if found["unread"] else 0


def _tell_rollout(found: documents.Shown, *, servers: bool = False) -> None:
    r, counts = found["rollout"], found["counts"]
    told = ", ".join(f"{number} {state}" for state, number in counts.items())
    state, why = r["state"].replace("_", " "), f"; {r['why']}" if r["why"] else ""
    output.tell(f"Rollout {r['id']}  {r['fleet']}  {state}, wave {r['wave'] + 1} of {len(r['waves'])}: {told}{why}")
    if found["frozen"] is not None:
        output.tell(f"FROZEN: no step begins anywhere: {found['frozen']}")
    for u in found["servers"]:
        needs = u["state"] == "held" or u["keeps_old"] is not None
        if needs:
            output.tell(f"{u['server']} needs you: {u['ails'] or u['why']}. Traffic: {u['traffic']}.")
        elif servers or u["state"] in ("running", "waiting"):
            output.tell(f"  {u['server']:<24}  {u['state']:<11}  {u['step']:<15}  {u['waits_for'] or u['why']}")
    for server, why in found["unread"].items():
        output.tell(f"{server} needs you: {why}. Traffic: {words.UNTOUCHED}.")
    output.say(f"Next: {found['next']}")


def watch(id: str, timeout: float | None, form: Format) -> int:
    with session.api() as client:
        return _follow(client, id, form, timeout)


def _follow(client: Client, id: str, form: Format, timeout: float | None) -> int:
    """As `orchestrator.cli.watching` does it beside Redis."""
    began, looked_at, still_since = time.monotonic(), -LOOK, None
    found = client.rollout(id)
    try:
        for event in client.follow(id, quiet=SETTLED):
            if event is not None:
                _tell_event(event, form)
            now = time.monotonic()
            moved = event is not None and (not event["server"] or event["now"] != event["was"])
            if not moved and now - looked_at < LOOK and still_since is None:
                continue
            looked_at, found = now, client.rollout(id)
            counts = found["counts"]
            moving = counts.get("running", 0) + counts.get("waiting", 0)
            if found["rollout"]["state"] == "paused" or (found["rollout"]["ended_at"] is not None and not moving):
                break
            still_since = (still_since or now) if counts.get("held") and not moving else None
            if still_since is not None and now - still_since >= SETTLED:
                break
            if timeout is not None and now - began >= timeout:
                raise WaitTimeout(
                    f"rollout {id} is {found['rollout']['state']} after {timeout:g} s; it goes on",
                    traffic=SERVES,
                    next=f"changeover watch {id}",
                )
    except KeyboardInterrupt:
        output.say(f"\nDetached. Rollout {id} goes on without you.")
        output.say(f"Next: changeover watch {id}   or   changeover pause {id}")
        return found["exit_code"]
    _emit(found) if form is Format.json else _tell_rollout(found)
    return found["exit_code"]


def explain(server: str, rollout: str, form: Format) -> int:
    with session.api() as client:
        if not rollout:
            newest = client.rollouts()["rollouts"]
            rollout = next((r["id"] for r in newest if any(server in wave for wave in r["waves"])), "")
        if not rollout:
            raise NotFound(f"no rollout has a server {server}", next="changeover rollouts")
        told = client.server(rollout, server)
    if form is Format.json:
        _emit(told)
        return NEEDS_YOU if told["unread"] else 0
    u = told["server"]
    if u is not None:
        why = f": {u['why']}" if u["why"] else ""
        output.tell(f"{server} of rollout {rollout}: {u['state']} at {u['step']}{why}\nTraffic: {u['traffic']}")
    else:
        output.tell(f"{server} of rollout {rollout} cannot be read: {told['unread']}\nTraffic: {words.UNTOUCHED}")
    for event in told["events"]:
        _tell_event(event, form)
    output.say(f"Next: {told['next']}")
    return NEEDS_YOU if told["unread"] else 0


def events(id: str, follow: bool, form: Format) -> int:
    with session.api() as client:
        for event in client.follow(id) if follow else client.events(id):
            if event is not None:
                _tell_event(event, form)
    return 0


def _tell_event(event: documents.Event, form: Format) -> None:
    from orchestrator.store import AuditEntry

    if form is Format.json:
        _emit(event)
        return
    entry = AuditEntry(**{name: value for name, value in event.items() if name != "schema"}, after={})  # type: ignore[arg-type] # the same keys
    output.tell(f"{words.clock(entry.at)}  {entry.server or 'rollout':<20}  {words.happened(entry)}")


def report(id: str, out: Path, form: Format) -> int:
    from orchestrator.report import html

    with session.api() as client:
        found = client.report(id)
    if found["uncertified"]:
        output.say(f"no certificate: {found['uncertified']}")
    try:
        files = html.write(found["report"], out)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", place=str(out), next="choose another --out") from None
    if form is Format.json:
        output.emit("report", {"files": [str(file) for file in files]})
        return 0
    for file in files:
        output.tell(str(file))
    return 0


def metrics() -> int:
    with session.api() as client:
        sys.stdout.write(client.metrics())
    return 0


# -- to decide ---------------------------------------------------------------------------------------------------------


def pause(id: str, why: str, form: Format) -> int:
    with session.api() as client:
        return _told(client.pause(id, why=why), form)


def resume(id: str, form: Format) -> int:
    with session.api() as client:
        return _told(client.resume(id), form)


def approve(id: str, wave: int | None, form: Format) -> int:
    with session.api() as client:
        return _told(client.approve(id, wave=None if wave is None else wave - 1), form)


def promote(id: str, form: Format) -> int:
    with session.api() as client:
        return _told(client.promote(id), form)


def abort(id: str, why: str, form: Format) -> int:
    with session.api() as client:
        return _told(client.abort(id, why=why), form)


def rollback(id: str, server: str, why: str, form: Format) -> int:
    with session.api() as client:
        return _told(client.rollback(id, server=server or None, why=why), form)


def retry(id: str, server: str, form: Format) -> int:
    with session.api() as client:
        return _told(client.retry(id, servers=[server] if server else None), form)


def freeze(reason: str, form: Format) -> int:
    with session.api() as client:
        return _told_frozen(client.freeze(reason=reason), form)


def unfreeze(form: Format) -> int:
    with session.api() as client:
        return _told_frozen(client.unfreeze(), form)


def _told(answer: documents.Answer, form: Format) -> int:
    if form is Format.json:
        _emit(answer)
        return NEEDS_YOU if answer["unread"] else 0
    r, done = answer["rollout"], answer["servers"]
    state = r["state"].replace("_", " ")
    told = f"{answer['verb']}: rollout {r['id']} is {state}" + (f", {r['why']}" if r["why"] else "")
    told += "".join(f"; {u['server']} is {u['state']}" for u in done[:10])
    told += f"; {words.many(len(answer['in_flight']), 'server')} under way." if answer["in_flight"] else "."
    output.tell(told if answer["changed"] else f"{told} Nothing was to be changed.")
    output.say_unconfirmed(answer["confirmed"], "The same command again is safe, and asks again.")
    output.say(f"Traffic: {done[0]['traffic'] if len(done) == 1 else SERVES}")
    output.say(f"Next: {answer['next']}")
    for server, why in answer["unread"].items():
        output.tell(f"{server} needs you: {why}. Traffic: {words.UNTOUCHED}.")
    return NEEDS_YOU if answer["unread"] else 0


def _told_frozen(done: documents.Freeze, form: Format) -> int:
    if form is Format.json:
        _emit(done)
        return 0
    now = "not frozen" if done["frozen"] is None else f"frozen: {done['frozen']}"
    output.tell(f"It is {now}. {words.many(done['in_flight'], 'server')} under way.")
    output.say_unconfirmed(done["confirmed"], "The same command again is safe, and asks again.")
    output.say(f"Next: {done['next']}")
    return 0
