"""`rollouts`, `show`, `watch`, `explain`, `events`, `report` and `metrics`: reading what is and what was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.output import NEEDS_YOU, Format, Output
from orchestrator.errors import BadInput

Id = Annotated[str, typer.Argument(metavar="ID", help="The rollout.", show_default=False)]


def rollouts(form: Output = Format.text) -> int:
    """List the rollouts, newest first."""
    from orchestrator import operations, schema

    with session.opened() as s:
        found, unread = operations.listed(s.store)
        frozen, orphans, now = s.store.frozen(), s.store.sightings(), s.store.now()
    if form is Format.json:
        listed = [{**schema.rollout(each), "counts": dict(tally.by_state)} for each, tally in found]
        output.emit("rollouts", {"frozen": frozen, "rollouts": listed, "unread": dict(unread)})
        return NEEDS_YOU if unread else 0
    if not found and not unread:
        output.say(
            "No rollout yet. If there were some, Redis has lost them: changeover rebuild FILE finds them in the world."
            "\nNext: changeover plan FILE"
        )
        return 0
    from orchestrator.cli import pictures

    output.console().print(pictures.rollouts(found, frozen, orphans, unread, now))
    return NEEDS_YOU if unread else 0


def show(
    id: Id,
    servers: Annotated[bool, typer.Option("--servers", help="List every server.")] = False,
    form: Output = Format.text,
) -> int:
    """Show a rollout: what needs you first, then waves, servers under way and those set aside."""
    from orchestrator import operations, schema

    with session.opened() as s:
        view, now = operations.view(s.store, id), s.store.now()
    if form is Format.json:
        output.emit("rollout", schema.shown(view))
    else:
        from orchestrator.cli import pictures

        output.console().print(pictures.rollout(view, now=now, whole=servers))
    return NEEDS_YOU if view.unread else 0


def watch(
    id: Id,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds to wait at most; then end with 124.", show_default="none")
    ] = None,
    form: Output = Format.text,
) -> int:
    """Follow a rollout until it ends or needs a person. Ctrl-C detaches; the rollout goes on.

    Ends with 0 when it succeeded, 1 failed, 3 paused or (also after its end) waiting for a person, 4 rolled back or
    aborted.
    """
    from orchestrator.cli.watching import follow

    with session.opened() as s:
        return follow(s.store, id, form, timeout=timeout)


def explain(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="Its name in the fleet file.", show_default=False)],
    rollout: Annotated[str, typer.Option("--rollout", metavar="ID", help="Of this rollout; else of its newest.")] = "",
    form: Output = Format.text,
) -> int:
    """Tell one server's story: what was asked, what was seen, where its traffic is, and what to do next."""
    from orchestrator import operations, schema

    with session.opened() as s:
        told = operations.explain(s.store, server, rollout=rollout or None)
    if form is Format.json:
        output.emit("story", schema.story(told))
        return NEEDS_YOU if told.unread else 0
    from orchestrator.cli import pictures

    output.console().print(pictures.story(told))
    return NEEDS_YOU if told.unread else 0


def events(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they happen, until Ctrl-C.")] = False,
    form: Output = Format.text,
) -> int:
    """Print the audit log of a rollout, oldest first; with JSON one object a line."""
    from orchestrator import operations
    from orchestrator.cli.watching import BLOCK, tell_event

    with session.opened() as s:
        operations.find(s.store, id)
        cursor = "0"
        while (found := s.store.events(id, after=cursor, block=BLOCK if follow else 0.0)) or follow:
            for entry in found:
                tell_event(entry, form)
            cursor = found[-1].id if found else cursor
    return 0


def report(
    id: Id,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write to.", show_default=False)],
    form: Output = Format.text,
) -> int:
    """Write what happened as one HTML page and as JSON, with the certificate of what the balancers counted."""
    from orchestrator import operations
    from orchestrator.report import html

    with session.opened() as s:
        document, view, uncertified = operations.report(s.store, s.ask, id)
    if uncertified:
        output.say(f"no certificate: {uncertified}")
    try:
        files = html.write(document, out)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", place=str(out), next="choose another --out") from None
    if form is Format.json:
        output.emit("report", {"files": [str(file) for file in files]})
    else:
        for file in files:
            output.tell(str(file))
    for server, why in view.unread.items():
        output.say(f"not in the report: {server}, {why}")
    return NEEDS_YOU if view.unread else 0


def metrics() -> int:
    """Print what dashboards and alarms need, in the text format of Prometheus."""
    from orchestrator.metrics import Metrics

    with session.opened() as s:
        sys.stdout.write(Metrics(s.store).text().decode())
    return 0
