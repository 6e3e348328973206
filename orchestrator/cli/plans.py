"""`plan`, `apply`, `doctor` and `rebuild`: from a fleet file to a rollout."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.output import Format, Output
from orchestrator.errors import BadInput, ChangeoverError, Unreachable, UnsafeStore

if TYPE_CHECKING:
    from orchestrator.domain.fleet import Fleet
    from orchestrator.domain.plan import Plan

File = Annotated[Path, typer.Argument(metavar="FILE", help="The fleet file.", show_default=False)]
Timeout = Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds to wait for a worker's answer.")]


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Whoever says FILE means this one."""
    try:
        yield
    except ChangeoverError as error:
        error.message, error.next = _named(error.message, file), _named(error.next, file)
        raise


def _named(text: str, file: Path) -> str:
    return re.sub(r"(changeover \w+ )FILE\b", lambda found: f"{found[1]}{file}", text)


def plan(
    file: File,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="End with 2 when there is something to do.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan here as JSON too.")] = None,
    timeout: Timeout = 60.0,
    form: Output = Format.text,
) -> int:
    """Say what would happen: waves, sizes, blockers, time and calls. Saves the plan; changes nothing."""
    from orchestrator import fleet_file, operations

    fleet = fleet_file.load(file)
    with _naming(file), session.opened() as s:
        made = operations.plan(s.store, s.ask, fleet, operations.Waiter(timeout=timeout))
    if out is not None:
        _write(out, made)
    show(made, form, file)
    refuse_too_small(file, fleet, made)
    if made.blockers:
        output.say("This plan cannot be applied before its blockers are mended.")
        output.say("Traffic: unchanged; nothing was created")
        lost = _named(operations.LOST, file)
        output.say(f"Next: {lost if made.survey.strangers else f'changeover doctor {file}'}")
        return 1
    if form is Format.text:
        output.say(f"Next: changeover apply {file} --plan {made.id}")
    return 2 if detailed_exitcode and made.changes else 0


def show(made: Plan, form: Format, file: Path) -> None:
    from orchestrator import schema

    if form is Format.json:
        output.emit("plan", schema.plan(made))
        return
    from orchestrator.cli import pictures

    output.console().print(pictures.plan(_of_file(made, file)))


def _of_file(made: Plan, file: Path) -> Plan:
    """For a picture."""
    return replace(made, blockers=tuple(_named(line, file) for line in made.blockers))


def refuse_too_small(file: Path, fleet: Fleet, made: Plan) -> None:
    """The one blocker that is a fault of the file: it is told with its place."""
    from orchestrator import fleet_file
    from orchestrator.domain.plan import human

    full = [server for server in made.survey.servers if server.disk_used > fleet.target.size.disk]
    if not full:
        return
    place = fleet_file.place_of(fleet_file.text_of(file), ("target", "size", "disk"), name=file.name)
    worst = max(full, key=lambda server: server.disk_used)
    raise BadInput(
        f"{human(fleet.target.size.disk)} is smaller than what {worst.name}'s disk holds, {human(worst.disk_used)}"
        + (f" (and {len(full) - 1} more)" if len(full) > 1 else ""),
        place=place,
        next="give the target a larger disk",
    )


def _write(out: Path, made: Plan) -> None:
    from orchestrator import schema

    text = json.dumps({"schema": "changeover/v1/plan", **schema.plan(made)}, indent=2)
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", place=str(out), next="choose another --out") from None


def apply(
    file: File,
    plan_id: Annotated[str, typer.Option("--plan", metavar="ID", help="Only if the world is still as it saw.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Follow it; Ctrl-C detaches.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: Timeout = 60.0,
    form: Output = Format.text,
) -> int:
    """Start a rollout of this fleet file. The world is read again; a plan that it has moved away from is refused."""
    from orchestrator import fleet_file, operations, schema, tracing, words

    tracing.configure("cli")
    fleet = fleet_file.load(file)
    asks = sys.stdin.isatty() and sys.stderr.isatty()
    if not yes and not asks:
        raise BadInput(
            "nobody is there to say yes: this is no terminal", place="apply", next=f"changeover apply {file} --yes"
        )
    waiter = operations.Waiter(timeout=timeout)
    with _naming(file), session.opened() as s:
        agreed = operations.saved_plan(s.store, plan_id) if plan_id else None
        if not yes:
            agreed = agreed or operations.plan(s.store, s.ask, fleet, waiter)
            refuse_too_small(file, fleet, agreed)
            operations.refuse_blockers(agreed)
            if not _agreed(_of_file(agreed, file)):
                output.say("Not applied; nothing was created. Traffic: unchanged.")
                return 1
        try:
            made = operations.apply(s.store, s.ask, fleet, agreed=agreed, actor=session.actor(), waiter=waiter)
        except ChangeoverError as error:
            if isinstance(error, BadInput) or "its disk holds" not in error.message:
                raise
            refuse_too_small(file, fleet, operations.plan(s.store, s.ask, fleet, waiter))
            raise
        next = f"changeover watch {made.id}"
        confirmed = operations.confirmed(s.store)
        if form is Format.json:
            output.emit("applied", {"rollout": schema.rollout(made), "confirmed": confirmed, "next": next})
        else:
            size = f"{words.many(len(fleet.servers), 'server')} in {words.many(len(made.waves), 'wave')}"
            output.tell(f"Rollout {made.id} has begun: {size}.")
            output.say_unconfirmed(confirmed, "To apply again is safe: as long as this one is known, it is refused.")
        if not watch:
            if form is Format.text:
                output.say(
                    f"Traffic: every server serves; each is replaced only after its new one is proven.\nNext: {next}"
                )
            return 0
        from orchestrator.cli.watching import follow

        return follow(s.store, made.id, form, timeout=None)


def _agreed(made: Plan) -> bool:
    """Asks on stderr, so that stdout stays for data."""
    from rich.console import Console

    from orchestrator import words
    from orchestrator.cli import pictures

    Console(stderr=True, highlight=False, markup=False, emoji=False).print(pictures.plan(made))
    return typer.confirm(f"\nReplace {words.many(made.changes, 'server')} as planned?", default=False, err=True)


def doctor(
    file: File,
    policy: Annotated[
        bool, typer.Option("--policy", help="Print instead what the workers' credentials at a cloud have to allow.")
    ] = False,
    timeout: Timeout = 30.0,
    form: Output = Format.text,
) -> int:
    """Check the file, Redis, the workers, and what a worker sees of the fleet. Changes nothing."""
    from dataclasses import asdict

    from orchestrator import fleet_file, operations
    from orchestrator.operations import Check
    from orchestrator.state_folder import StateFolder

    fleet = fleet_file.load(file)
    if policy:
        return _policy(file, fleet, timeout, form)
    found = [Check(name="fleet file", ok=True, detail=f"{fleet.fleet}, {len(fleet.servers)} servers")]
    code = 0
    try:
        with session.opened() as s:
            s.check_messages()
            waiter = operations.Waiter(timeout=timeout)
            folder = StateFolder(s.settings.state_dir.expanduser().absolute())
            up = folder.read_run() if folder.holder() else None
            found += operations.doctor(s.store, s.ask, fleet, dev=s.settings.dev, up=up, waiter=waiter)
    except (Unreachable, UnsafeStore) as error:
        found.append(Check(name="Redis", ok=False, detail=error.message, fix=error.next))
    found = [replace(each, detail=_named(each.detail, file), fix=_named(each.fix, file)) for each in found]
    ill = [check for check in found if not check.ok]
    if ill:
        code = Unreachable.exit_code if any(check.name == "Redis" for check in ill) else 1
    if form is Format.json:
        output.emit("doctor", {"ok": not ill, "checks": [asdict(check) for check in found]})
        return code
    from orchestrator.cli import pictures

    output.console().print(pictures.checks(found))
    if ill:
        output.say(f"{len(ill)} of {len(found)} checks failed. Traffic: unchanged; nothing was created")
        output.say(f"Next: {ill[0].fix or 'mend it'}; then changeover doctor {file}")
    return code


def _policy(file: Path, fleet: Fleet, timeout: float, form: Format) -> int:
    """The policies alone on stdout, each as a cloud takes it."""
    from orchestrator import operations

    with _naming(file), session.opened() as s:
        needed = operations.needed_rights(s.store, s.ask, fleet, operations.Waiter(timeout=timeout))
    if form is Format.json:
        output.emit("policies", {"policies": needed})
        return 0
    if not needed:
        output.say("The providers of this fleet file need no policy.")
    for each in needed:
        output.say(f"For {each['who']}:")
        output.tell(json.dumps(each["policy"], indent=2))
    return 0


def rebuild(
    file: File,
    rollout: Annotated[
        str, typer.Option("--rollout", metavar="ID", help="Which, where the marks of several are found.")
    ] = "",
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="NAME", help="Leave this server out, as it is. May be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it. Else only say what was found.")] = False,
    timeout: Timeout = 60.0,
    form: Output = Format.text,
) -> int:
    """Tell from the world alone where every server stands, when Redis has lost everything. A dry run unless --yes.

    FILE is the fleet file of then. The rollout comes to be again under its own id, paused; resume goes on with it.
    """
    from orchestrator import fleet_file, operations, schema

    fleet = fleet_file.load(file)
    with _naming(file), session.opened() as s:
        found, made = operations.rebuild(
            s.store,
            s.ask,
            fleet,
            rollout=rollout,
            without=without or (),
            act=yes,
            actor=session.actor(),
            waiter=operations.Waiter(timeout=timeout),
        )
    same = f"changeover rebuild {file}" + (f" --rollout {rollout}" if rollout else "")
    same += "".join(f" --without {name}" for name in without or ())
    next = f"changeover resume {made.id}" if made is not None else f"{same} --yes"
    if form is Format.json:
        output.emit("rebuilt", schema.rebuilt(found, made=made is not None, next=next))
        return 0
    from orchestrator.cli import pictures

    output.console().print(pictures.rebuilt(found))
    if made is not None:
        output.tell(f"Rollout {made.id} is there again, and paused. What was on its way back goes on at once.")
    else:
        output.say("Nothing was created.")
    output.say(
        "Marks, sizes and pools agree with this file. Whether its checks, hooks, waves and limits are those of then, "
        "nothing in the world can say."
    )
    output.say("Traffic: as it was found; nothing was changed")
    output.say(f"Next: {next}")
    return 0
