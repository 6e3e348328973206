"""Following a rollout: a live picture on a terminal, one line an event elsewhere, until it ends or needs a person."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator import operations, schema, words
from orchestrator.cli import output
from orchestrator.cli.output import Format
from orchestrator.domain.rollout import Rollout
from orchestrator.errors import WaitTimeout
from orchestrator.store import AuditEntry, Store

BLOCK = 0.5  # seconds that one wait for events takes
SETTLED = 2.0  # seconds for which nothing but held servers must be under way, before a person is needed
TOLD = 20  # servers that are named
FRAME = 0.25  # seconds between two pictures, at least


@dataclass
class _Watched:
    """Whether to go on. A server that is held or cannot be read does not end it as long as others are under way."""

    store: Store
    id: str
    timeout: float | None
    began: float
    still_since: float | None = None
    stuck: bool = False
    read_at: float | None = None

    def over(self) -> bool:
        rollout = operations.find(self.store, self.id)
        if rollout.state == "paused":
            return True
        states = self.store.tally(self.id).by_state
        if rollout.ended and not states.get("running") and not states.get("waiting"):
            return True  # one server of an ended rollout may still be put back
        now = time.monotonic()
        still = bool(states.get("held")) and not states.get("running") and not states.get("waiting")
        still = still or self._stuck(now)
        if not still:
            self.still_since = None
        elif self.still_since is None:
            self.still_since = now
        elif now - self.still_since >= SETTLED:
            return True
        if self.timeout is not None and now - self.began >= self.timeout:
            raise WaitTimeout(
                f"rollout {self.id} is {rollout.state} after {self.timeout:g} s; it goes on",
                traffic="every server is served by its old or its new one",
                next=f"changeover watch {self.id}",
            )
        return False

    def _stuck(self, now: float) -> bool:
        """Whether records that cannot be read keep it from ending. The counts still have such a server under way."""
        if self.read_at is None or now - self.read_at >= SETTLED:
            self.read_at = now
            view = operations.view(self.store, self.id)
            self.stuck = bool(view.unread) and not any(u.state in ("running", "waiting") for u in view.upgrades)
        return self.stuck


def follow(store: Store, id: str, form: Format, *, timeout: float | None) -> int:
    """The exit code of how it ended. Ctrl-C detaches: the rollout goes on."""
    watched = _Watched(store, id, timeout, time.monotonic())
    operations.find(store, id)
    try:
        if form is Format.text and sys.stdout.isatty():
            _live(watched)
        else:
            _lines(watched, form)
    except KeyboardInterrupt:
        view = operations.view(store, id)
        output.say(f"\nDetached. Rollout {id} goes on without you; it is {view.rollout.state}.")
        output.say(f"Next: changeover watch {id}   or   changeover pause {id}")
        return view.exit_code
    view = operations.view(store, id)
    if form is Format.json:
        output.emit("rollout", schema.shown(view))
    elif not sys.stdout.isatty():
        end(view)
    return view.exit_code


def end(view: operations.View) -> None:
    """How it stands, in plain lines."""
    r = view.rollout
    states = ", ".join(f"{number} {state.replace('_', ' ')}" for state, number in view.tally.by_state.items())
    state = r.state.replace("_", " ")
    if words.moved_on(r, view.upgrades):
        output.tell(f"Rollout {r.id} ended as {state}{f' ({r.why})' if r.why else ''}; now: {states}")
    else:
        output.tell(f"Rollout {r.id} is {state}: {states}" + (f"; {r.why}" if r.why else ""))
    for u in view.held:
        either = f"{words.next_for(r, u)}   or   {words.otherwise(r, u)}"
        output.tell(f"{u.server} needs you: {u.why}. Traffic: {u.traffic}. Next: {either}")
    for u in view.alarms:
        output.tell(f"{u.server} needs you: its new server ails. Traffic: {u.traffic}. Next: {words.next_for(r, u)}")
    tell_unread(r, view.unread)
    output.say(f"Next: {words.next_of(r, view.upgrades)}")


def tell_unread(rollout: Rollout, unread: Mapping[str, str]) -> None:
    """A line for each server whose record cannot be read."""
    for server, why in list(unread.items())[:TOLD]:
        next = words.next_for_unread(rollout, server)
        output.tell(f"{server} needs you: {why}. Traffic: {words.UNTOUCHED}. Next: {next}")
    if len(unread) > TOLD:
        output.tell(f"and {len(unread) - TOLD} more that cannot be read")


def _live(watched: _Watched) -> None:
    from rich.live import Live

    from orchestrator.cli import pictures

    told = operations.events(watched.store, watched.id)
    cursor = told[-1].id if told else "0"
    with Live(console=output.console(), auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            over = watched.over()
            view = operations.view(watched.store, watched.id)
            live.update(pictures.rollout(view, now=watched.store.now()), refresh=True)
            if over:
                return
            time.sleep(FRAME)
            if news := watched.store.events(watched.id, after=cursor, block=BLOCK):
                cursor = news[-1].id


def _lines(watched: _Watched, form: Format) -> None:
    cursor = "0"
    while True:
        over = watched.over()  # asked before the log is read: what led there is in it
        while news := watched.store.events(watched.id, after=cursor, block=0.0 if over else BLOCK):
            for entry in news:
                tell_event(entry, form)
            cursor = news[-1].id
            over = over or watched.over()
        if over:
            return


def tell_event(entry: AuditEntry, form: Format) -> None:
    if form is Format.json:
        output.emit("event", schema.event(entry))
    else:
        output.tell(f"{words.clock(entry.at)}  {entry.server or 'rollout':<20}  {words.happened(entry)}")
