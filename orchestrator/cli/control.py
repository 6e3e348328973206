"""What a person decides: `approve`, `promote`, `pause`, `resume`, `abort`, `rollback`, `retry`, `settle`, `freeze`,
`unfreeze` and `gc`."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.looking import Id
from orchestrator.cli.output import NEEDS_YOU, Format, Output

if TYPE_CHECKING:
    from orchestrator.domain.upgrade import Upgrade
    from orchestrator.operations import Answer, Frozen

Why = Annotated[str, typer.Option("--why", help="Kept in the audit log.")]


class Side(Enum):
    """Of an upgrade."""

    old = "old"
    new = "new"


Server = Annotated[str, typer.Option("--server", metavar="NAME", help="Only this server.")]


def pause(id: Id, why: Why = "", form: Output = Format.text) -> int:
    """Begin nothing new; what is under way finishes its step and waits."""
    from orchestrator import operations

    with session.opened() as s:
        answer = operations.pause(s.store, id, actor=session.actor(), why=why)
    told = (
        f"Each finishes the step it is in and waits there: {_flying(answer.in_flight)}."
        if answer.in_flight
        else "No server is under way."
    )
    return _tell(
        answer,
        "pause",
        form,
        f"Rollout {id} is paused. {told}",
        traffic="every server serves; one in the middle of its swap is served by its old and its new one",
        next=f"changeover resume {id}",
    )


def resume(id: Id, form: Output = Format.text) -> int:
    """Go on where it was paused. Failures so far are forgiven, and deadlines move by the pause."""
    from orchestrator import operations, words

    with session.opened() as s:
        answer = operations.resume(s.store, id, actor=session.actor())
    if not answer.changed:
        told = f"Rollout {id} is not paused, it is {answer.rollout.state.replace('_', ' ')}."
        next = f"changeover watch {id}"
        return _tell(answer, "resume", form, told, traffic="unchanged", next=next, unchanged=told)
    held = tuple(u for u in answer.in_flight if u.state == "held")
    going = tuple(u for u in answer.in_flight if u.state != "held")
    asks = answer.rollout.state == "awaiting_approval"
    return _tell(
        answer,
        "resume",
        form,
        f"Rollout {id} is {answer.rollout.state.replace('_', ' ')} again. "
        + (f"{answer.rollout.why[:1].upper()}{answer.rollout.why[1:]}. " if asks else "")
        + (f"At once go on {_flying(going)}." if going else "No server was under way.")
        + (f" Held until somebody retries: {words.names(held)}." if held else ""),
        traffic="every server serves; each is replaced only after its new one is proven",
        next=f"changeover {'approve' if asks else 'watch'} {id}",
    )


def approve(
    id: Id,
    wave: Annotated[
        int | None, typer.Option("--wave", min=1, metavar="N", help="Only if it is this one that waits for it.")
    ] = None,
    form: Output = Format.text,
) -> int:
    """Say yes to the wave that waits for it. The name of your user stands for you."""
    from orchestrator import operations, words

    with session.opened() as s:
        asked = None if wave is None else wave - 1
        answer = operations.approve(s.store, id, who=session.person(), actor=session.actor(), wave=asked)
    r = answer.rollout
    lacking = r.approval.count - len(r.approved_by) if r.approval is not None else 0
    more = f"; {lacking} more {'is' if lacking == 1 else 'are'} wanted before it begins" if lacking else ": it begins"
    return _tell(
        answer,
        "approve",
        form,
        f"Wave {r.wave + 1} of rollout {id} is approved by {', '.join(r.approved_by)}{more}.",
        traffic="every server serves; each is replaced only after its new one is proven",
        next=f"changeover watch {id}" if not lacking else words.next_of(r, ()),
    )


def promote(id: Id, form: Output = Format.text) -> int:
    """End the bake of the wave that is through, and go on with the next."""
    from orchestrator import operations

    with session.opened() as s:
        answer = operations.promote(s.store, id, actor=session.actor())
    told = (
        f"The bake of wave {answer.rollout.wave + 1} of rollout {id} is over."
        if answer.changed
        else f"Rollout {id} bakes no longer."
    )
    traffic = "every server serves; one whose new server is in doubt still keeps the next wave waiting"
    return _tell(answer, "promote", form, told, traffic=traffic, next=f"changeover watch {id}", unchanged=told)


def abort(id: Id, why: Why = "", form: Output = Format.text) -> int:
    """Begin nothing new and undo what has begun; upgraded servers stay upgraded."""
    from orchestrator import operations

    with session.opened() as s:
        answer = operations.abort(s.store, id, actor=session.actor(), why=why)
    behind = "finish" if answer.rollout.on_abort == "finish" else "go back too"
    told = (
        f"{_flying(answer.in_flight)}: those before their swap go back, those behind it {behind}."
        if answer.in_flight
        else "No server is under way."
    )
    return _tell(
        answer,
        "abort",
        form,
        f"Rollout {id} is {answer.rollout.state}. {told} What is upgraded stays so (rollback undoes it).",
        traffic="every server serves; a new one leaves only after its old one is proven back",
        next=f"changeover watch {id}",
    )


def rollback(id: Id, server: Server = "", why: Why = "", form: Output = Format.text) -> int:
    """Put the old servers back, of one server or of the whole rollout, as long as they are kept."""
    from orchestrator import operations

    with session.opened() as s:
        if server:
            answer = operations.rollback_server(s.store, id, server, actor=session.actor(), why=why)
        else:
            answer = operations.rollback(s.store, id, actor=session.actor(), why=why)
        frozen = s.store.frozen()
    if server:
        u = answer.servers[0]
        going = "is back on its old server" if u.terminal else "goes back to its old server"
        if u.terminal and not u.begun:
            going = "had not begun: its old server serves, and stays"
        waits = frozen is not None and not u.terminal
        told = f"{server} {going}" + (f" once it is unfrozen. Nothing begins until then: {frozen}." if waits else ".")
        next = "changeover unfreeze" if waits else f"changeover explain {server}"
        return _tell(answer, "rollback", form, told, traffic=u.traffic, next=next)
    return _tell(
        answer,
        "rollback",
        form,
        f"Rollout {id} is {answer.rollout.state.replace('_', ' ')}: every server goes back, newest first.",
        traffic="each old server is proven to serve again before its new one leaves",
        next=f"changeover watch {id}",
    )


def retry(id: Id, server: Server = "", form: Output = Format.text) -> int:
    """Let a held server go on, or try a failed one anew. Without --server: every held or failed one."""
    from orchestrator import operations

    with session.opened() as s:
        answer = operations.retry(s.store, id, [server] if server else None, actor=session.actor())
    tried = ", ".join(u.server for u in answer.servers[:10])
    more = f" and {len(answer.servers) - 10} more" if len(answer.servers) > 10 else ""
    told = f"Tried again: {tried}{more}." if answer.changed else f"Rollout {id} has no server to try again."
    traffic = answer.servers[0].traffic if len(answer.servers) == 1 else "each is served by its old or its new one"
    if server and not answer.changed:
        told = f"{server} is {answer.servers[0].state}: there is nothing to try again."
    return _tell(
        answer,
        "retry",
        form,
        told,
        traffic=traffic if answer.changed else "unchanged",
        next=_next_of_a_retry(answer),
        unchanged=told,
    )


def _next_of_a_retry(answer: Answer) -> str:
    """A rollout that has ended is not watched any more, though a server of it goes on."""
    from orchestrator import words

    if not answer.changed:
        return f"changeover show {answer.rollout.id}"
    if answer.rollout.ended:
        return f"changeover explain {answer.servers[0].server} --rollout {answer.rollout.id}"
    return words.next_of(answer.rollout, ())


def settle(
    id: Id,
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="A held one, or whose new one ails.", show_default=False)
    ],
    serving: Annotated[Side, typer.Option("--serving", help="Which of the two serves, and stays.", show_default=False)],
    because: Annotated[str, typer.Option("--because", help="Kept in the audit log.", show_default=False)],
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Take my word for it: nobody looks whether it is so.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds to wait for a worker's answer.")] = 60.0,
    form: Output = Format.text,
) -> int:
    """End a held server as you have put it right by hand: it stays as it is, and its rollout can end.

    So can one that is upgraded and whose old server is kept on, because the new one ails.

    A worker looks first: the one that is said to serve must serve in the balancers' own view, and the other must be in
    no pool. What is left of the other is listed by gc, and yours to delete.
    """
    from orchestrator import operations

    with session.opened() as s:
        answer = operations.settle(
            s.store,
            s.ask,
            id,
            server,
            serving=serving.value,
            because=because,
            unchecked=unchecked,
            actor=session.actor(),
            waiter=operations.Waiter(timeout=timeout),
        )
    u = answer.servers[0]
    told = f"{server} is settled: its {serving.value} server serves, and nothing more is done for it."
    return _tell(answer, "settle", form, told, traffic=u.traffic, next="changeover gc")


def freeze(
    reason: Annotated[str, typer.Option("--reason", help="Shown to everybody.")] = "", form: Output = Format.text
) -> int:
    """Begin no step of any rollout, forward or back, until `unfreeze`."""
    from orchestrator import operations

    with session.opened() as s:
        frozen = operations.freeze(s.store, actor=session.actor(), reason=reason)
    told = (
        f"Frozen: {frozen.why}. No step begins; {_under_way(frozen)}, and what a worker has in hand finishes."
        if frozen.changed
        else f"It was frozen already: {frozen.why}."
    )
    return _tell_frozen(frozen, form, told, "changeover unfreeze")


def unfreeze(form: Output = Format.text) -> int:
    """Let steps begin again."""
    from orchestrator import operations

    with session.opened() as s:
        frozen = operations.unfreeze(s.store, actor=session.actor())
    told = (
        f"No longer frozen; {_under_way(frozen)}, and what waited goes on within seconds."
        if frozen.changed
        else "It was not frozen."
    )
    return _tell_frozen(frozen, form, told, "changeover rollouts")


def gc(
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Act: end what is due, put orphans into quarantine, delete old ones.")
    ] = False,
    foreign: Annotated[bool, typer.Option("--foreign", help="Also what may be somebody else's. With --yes.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ID", help="Nothing but this server or image. May be repeated."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds to wait for a worker's answer.")] = 20.0,
    form: Output = Format.text,
) -> int:
    """List what we made and keep, what is due to go, and what nobody accounts for. A dry run unless --yes.

    What nobody accounts for is stopped and kept in quarantine once it was seen for a quarter of an hour, and deleted a
    day later, each with --yes only; take its tag changeover:managed off to keep it. A server that may be somebody
    else's goes only when it is named: --foreign --only ID. Look first whether a balancer sends users to it.
    """
    from orchestrator import operations, words
    from orchestrator.cli import pictures

    with session.opened() as s:
        found = operations.gc(
            s.store,
            s.ask,
            s.publish,
            collect=yes,
            grace=s.settings.grace,
            foreign=foreign,
            only=tuple(only or ()),
            waiter=operations.Waiter(timeout=timeout),
        )
        now = s.store.now()
    if form is Format.json:
        output.emit(
            "gc",
            {
                "kept": [{"rollout": each.rollout, **asdict(each.item)} for each in found.kept],
                "due": [{"rollout": rollout, "server": server} for rollout, server in found.due],
                "sent": [{"rollout": rollout, "server": server} for rollout, server in found.sent],
                "kept_on": [{"rollout": r, "server": name, "why": why} for (r, name), why in found.kept_on.items()],
                "orphans": [asdict(orphan) for orphan in found.orphans],
                "done": list(found.done),
                "not_done": list(found.not_done),
                "unread": dict(found.unread),
                "searched": list(found.searched),
            },
        )
        return NEEDS_YOU if found.unread else 0
    output.console().print(pictures.inventory(found, now))
    if not found.searched and not found.unread:
        output.say(
            "This Redis knows of no rollout, so nothing was searched. If it has lost what it knew, it is found in the "
            "world again, and nothing of ours is to be ended before that.\nNext: changeover rebuild FILE"
        )
        return 0
    named = set(only or ())
    unnamed = [o.id for o in found.orphans if o.may_serve and not o.pools and o.id not in named]
    waiting = [o for o in found.orphans if o.key not in found.ripe and not o.pools and not o.unsure]
    if waiting and found.patience is not None:
        seen, kept = words.span(found.patience.seen), words.span(found.patience.kept)
        output.say(
            f"gc --yes puts into quarantine what was seen for {seen}, and deletes it {kept} later; "
            "what may be somebody else's only with --foreign."
        )
    if foreign and unnamed:
        output.say(
            "What may be serving users is not touched by --foreign alone. Look at the balancers first; what none of "
            f"them sends users to: changeover gc --foreign --yes --only {unnamed[0]}"
        )
    if any(each.yours for each in found.kept):
        output.say(
            "What is yours to delete a settle has left behind, and nothing of ours touches it. End it with the "
            "provider's own tools: gc --yes then takes it off this list."
        )
    due = found.ripe or (found.due and not named)
    if due and not yes:
        options = [*(["--foreign"] if foreign else []), *(f"--only {id}" for id in only or ())]
        output.say(f"Nothing was touched.\nNext: {' '.join(['changeover gc --yes', *options])}")
    elif yes and not (found.done or found.sent or found.not_done):
        output.say("Nothing was touched: of what is listed nothing is due.")
    return NEEDS_YOU if found.unread else 0


def _flying(upgrades: tuple[Upgrade, ...]) -> str:
    from orchestrator import words

    return f"{words.many(len(upgrades), 'server')} under way, {words.names(upgrades)}"


def _tell(answer: Answer, verb: str, form: Format, told: str, *, traffic: str, next: str, unchanged: str = "") -> int:
    from orchestrator.cli import watching

    if form is Format.json:
        from orchestrator import schema

        output.emit("answer", schema.answer(answer, verb=verb, next=next))
        return NEEDS_YOU if answer.unread else 0
    if not answer.changed and not unchanged:
        told += " It was so already."
    output.tell(told)
    output.say_unconfirmed(answer.confirmed, "The same command again is safe, and asks again.")
    output.say(f"Traffic: {traffic}")
    output.say(f"Next: {next}")
    if not answer.unread:
        return 0
    watching.tell_unread(answer.rollout, answer.unread)
    output.tell("The others do as told; nothing new begins, and the rollout does not end, until every record is read.")
    return NEEDS_YOU


def _under_way(frozen: Frozen) -> str:
    return "1 server is under way" if frozen.in_flight == 1 else f"{frozen.in_flight} servers are under way"


def _tell_frozen(frozen: Frozen, form: Format, told: str, next: str) -> int:
    if form is Format.json:
        from orchestrator import schema

        output.emit("freeze", schema.freeze(frozen, next=next))
        return 0
    output.tell(told)
    output.say_unconfirmed(frozen.confirmed, "The same command again is safe, and asks again.")
    output.say("Traffic: every server serves; one in the middle of its swap is served by its old and its new one")
    output.say(f"Next: {next}")
    return 0
