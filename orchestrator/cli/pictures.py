"""What a person sees on a terminal. Every function returns something for rich to print; nothing is printed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from orchestrator import evidence, words
from orchestrator.cli.output import clean
from orchestrator.domain.rollout import Rollout, in_flight
from orchestrator.domain.upgrade import Upgrade

if TYPE_CHECKING:
    from orchestrator.domain.orphans import Sighting
    from orchestrator.domain.plan import Plan
    from orchestrator.domain.rebuild import Rebuilt
    from orchestrator.domain.token import Token
    from orchestrator.operations import Check, Inventory, Story, View
    from orchestrator.store import AuditEntry, Tally

COLOURS: Mapping[str, str] = {
    "pending": "bright_black",
    "running": "cyan",
    "baking": "cyan",
    "waiting": "blue",
    "held": "bold yellow",
    "awaiting_approval": "bold yellow",
    "awaiting_window": "blue",
    "paused": "bold yellow",
    "aborting": "magenta",
    "rolling_back": "magenta",
    "upgraded": "green",
    "succeeded": "bold green",
    "rolled_back": "magenta",
    "aborted": "magenta",
    "failed": "bold red",
}
ORDER = ("upgraded", "running", "waiting", "held", "failed", "rolled_back", "pending")
LOOK = "changeover doctor FILE"
MOST = 30  # rows of a table before "and N more"


def state(word: str) -> Text:
    return Text(word.replace("_", " "), style=COLOURS.get(word, ""))


def text(line: object, style: str = "") -> Text:
    return Text(clean(str(line)), style=style)


def next_line(command: str) -> Text:
    return Text.assemble(("Next: ", "bold"), (clean(command), "cyan"))


def counts(by_state: Mapping[str, int]) -> Text:
    """`5 upgraded · 2 running · 1 held`."""
    parts: list[Text] = []
    for word in ORDER:
        if number := by_state.get(word, 0):
            parts.append(Text(f"{number} {word.replace('_', ' ')}", style=COLOURS[word]))
    return Text(" · ", style="bright_black").join(parts)


def _table(*columns: str, title: str = "") -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title=title or None,
        title_justify="left",
        title_style="bold",
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


# -- rollouts --------------------------------------------------------------------------------------------------------


def rollouts(
    found: Sequence[tuple[Rollout, Tally]],
    frozen: str | None,
    orphans: Sequence[Sighting],
    unread: Mapping[str, str],
    now: float,
) -> RenderableType:
    parts: list[RenderableType] = []
    if frozen is not None:
        parts += [_frozen(frozen), Text()]
    table = _table("rollout", "fleet", "state", "wave", "servers", "age", "by", "")
    for each, tally in found:
        table.add_row(
            text(each.id, "bold"),
            text(each.fleet),
            state(each.state),
            f"{each.wave + 1}/{len(each.waves)}",
            counts(tally.by_state),
            words.span(now - each.created_at),
            text(each.created_by),
            text(words.short(each.why or each.stop or each.alarm)),
        )
    parts.append(table)
    if orphans:
        parts += [Text(), *_orphans(orphans)]
    parts += [line for id, why in list(unread.items())[:MOST] for line in _unreadable(id, why)]
    parts += _more(len(unread))
    return Group(*parts)


def _unreadable(id: str, why: str) -> list[RenderableType]:
    """A rollout, or `rollout/server`."""
    rollout, _, server = id.partition("/")
    told = f"{server} of rollout {rollout}" if server else rollout
    next = f"changeover show {rollout}" if server else "restore Redis from its append-only file or a backup"
    return [
        text(f"{told} needs you, it cannot be read: {why}", "bold red"),
        Padding(next_line(next), (0, 0, 0, 2), expand=False),
    ]


def _orphans(found: Sequence[Sighting]) -> list[RenderableType]:
    quarantined = sum(s.quarantined_at is not None for s in found)
    told = f"{words.many(len(found), 'thing')} with our mark that nobody accounts for, {quarantined} in quarantine"
    return [text(told, "yellow"), Padding(next_line("changeover gc"), (0, 0, 0, 2), expand=False)]


def _frozen(why: str) -> Text:
    return Text.assemble(
        ("FROZEN ", "bold yellow"), clean(f"no step begins anywhere: {why}. "), next_line("changeover unfreeze")
    )


def rollout(view: View, *, now: float, whole: bool = False) -> RenderableType:
    """The rollout with what needs a person first."""
    r = view.rollout
    parts: list[RenderableType] = [_head(view, now)]
    if view.frozen is not None:
        parts.append(_frozen(view.frozen))
    if view.alone:
        parts.append(Text.assemble(("STANDS STILL ", "bold yellow"), f"{words.ALONE}. ", next_line(LOOK)))
    if view.held or view.alarms or view.unread or r.state in ("paused", "awaiting_approval"):
        parts += [Text(), *_needs_you(view)]
    parts += [Text(), _waves(view)]
    flying = [u for u in view.upgrades if in_flight(u) and u.state != "held"]
    if flying:
        parts += [Text(), _under_way(flying, now)]
    aside = [u for u in view.upgrades if u.state in ("failed", "rolled_back")]
    if aside:
        parts += [Text(), _set_aside(aside)]
    if view.orphans:
        parts += [Text(), *_orphans(view.orphans)]
    if whole:
        parts += [Text(), _all(view.upgrades)]
    next = LOOK if view.alone else words.next_of(r, view.upgrades)
    parts += [Text(), next_line("changeover unfreeze" if view.frozen is not None and not r.ended else next)]
    return Group(*parts)


def _head(view: View, now: float) -> RenderableType:
    r = view.rollout
    total = len(view.upgrades) + len(view.unread)
    done = sum(u.state == "upgraded" for u in view.upgrades)
    head = Text.assemble(("Rollout ", "bold"), (clean(r.id), "bold"), "  ", clean(r.fleet), "  ")
    head.append_text(state(r.state))
    head.append(f"  wave {r.wave + 1} of {len(r.waves)}, ")
    since = words.moved_on(r, view.upgrades)
    head.append(f"{'now ' if since else ''}{done} of {total} upgraded")
    back = sum(u.state in ("running", "waiting") and u.direction == "undo" for u in view.upgrades)
    if back:
        head.append(f", {back} on the way back")
    if r.state == "baking" and r.bake_until:
        head.append(f", bakes for {words.span(r.bake_until - now)} more")
    took = words.span((r.ended_at or now) - r.created_at)
    lines = [head, text(f"began {words.moment(r.created_at)} by {r.created_by}, {took}, plan {r.plan}", "bright_black")]
    if (r.why or r.stop) and r.state not in ("paused", "awaiting_approval"):
        lines.append(text(f"{'when it ended: ' if since else ''}{r.why or r.stop}"))
    return Group(*lines)


def _needs_you(view: View) -> Iterable[RenderableType]:
    yield Rule(Text("NEEDS YOU", style="bold yellow"), align="left", style="yellow")
    r = view.rollout
    if r.state == "paused":
        yield text(f"The rollout is paused: {r.why}")
        yield Padding(
            next_line(f"changeover resume {r.id}   or   changeover rollback {r.id}"), (0, 0, 0, 2), expand=False
        )
    if r.state == "awaiting_approval":
        said = f"; {', '.join(r.approved_by)} approved it" if r.approved_by else ""
        yield text(f"{r.why[:1].upper()}{r.why[1:]}{said}{words.unanswered(r)}.")
        yield Padding(next_line(words.next_of(r, ())), (0, 0, 0, 2), expand=False)
    for u in view.held[:MOST]:
        yield Text.assemble((clean(u.server), "bold"), f" held at {words.where(u)}: ", clean(u.why))
        yield Padding(text(f"Traffic: {u.traffic}"), (0, 0, 0, 2), expand=False)
        yield Padding(next_line(_ways(r, u)), (0, 0, 0, 2), expand=False)
    for u in view.alarms[:MOST]:
        yield Text.assemble((clean(u.server), "bold"), " is upgraded, and its new server ails: ", clean(_ails(u)))
        if u.keeps_old:
            kept = "Its old server is kept on, whatever its time, until the new one serves again or you have decided."
            yield Padding(text(kept), (0, 0, 0, 2), expand=False)
        yield Padding(text(f"Traffic: {u.traffic}"), (0, 0, 0, 2), expand=False)
        yield Padding(next_line(_ways(r, u)), (0, 0, 0, 2), expand=False)
    if len(view.held) > MOST:
        yield text(f"and {len(view.held) - MOST} more")
    for server, why in list(view.unread.items())[:MOST]:
        yield Text.assemble((clean(server), "bold"), " cannot be read: ", clean(why))
        yield Padding(text(f"Traffic: {words.UNTOUCHED}"), (0, 0, 0, 2), expand=False)
        yield Padding(next_line(words.next_for_unread(r, server)), (0, 0, 0, 2), expand=False)
    yield from _more(len(view.unread))


def _ways(r: Rollout, u: Upgrade) -> str:
    """What a person can say of a server: both ways where it waits for them."""
    return f"{words.next_for(r, u)}   or   {words.otherwise(r, u)}" if u.asks_person else words.next_for(r, u)


def _ails(u: Upgrade) -> str:
    return u.ailing.why if u.ailing is not None else ""


def _waves(view: View) -> Table:
    table = _table("wave", "servers", "done", "", title="Waves")
    for index, wave in enumerate(view.rollout.waves):
        inside = [u for u in view.upgrades if u.wave == index]
        by_state: dict[str, int] = {}
        for u in inside:
            by_state[u.state] = by_state.get(u.state, 0) + 1
        now = index == view.rollout.wave and not view.rollout.ended
        table.add_row(
            Text(f"{'▸' if now else ' '} {index + 1}", style="bold" if now else ""),
            f"{len(wave):,}",
            ProgressBar(total=max(1, len(inside)), completed=by_state.get("upgraded", 0), width=24),
            counts(by_state),
        )
    return table


def _under_way(flying: Sequence[Upgrade], now: float) -> RenderableType:
    table = _table("server", "state", "step", "for", "what", title="Under way")
    for u in flying[:MOST]:
        since = words.span(now - u.admitted_at) if u.admitted_at else ""
        table.add_row(
            text(u.server, "bold"), state(u.state), text(words.progress(u)), since, text(words.short(u.why, 70))
        )
    return Group(table, *_more(len(flying)))


def _set_aside(aside: Sequence[Upgrade]) -> RenderableType:
    table = _table("server", "state", "why", title="Set aside (their old servers serve)")
    for u in aside[:MOST]:
        table.add_row(text(u.server, "bold"), state(u.state), text(u.why))
    return Group(table, *_more(len(aside)))


def _all(upgrades: Sequence[Upgrade]) -> RenderableType:
    table = _table("server", "wave", "state", "step", "traffic", title="All servers")
    for u in upgrades:
        at = words.where(u) if u.state == "upgraded" else words.progress(u)
        table.add_row(text(u.server, "bold"), str(u.wave + 1), state(u.state), text(at), text(u.traffic))
    return table


def _more(total: int) -> list[RenderableType]:
    return [text(f"and {total - MOST:,} more", "bright_black")] if total > MOST else []


# -- one server ------------------------------------------------------------------------------------------------------


def story(told: Story) -> RenderableType:
    """The timeline of one server, with the evidence under each line."""
    u, r = told.upgrade, told.rollout
    waits = told.frozen is not None and u is not None and u.state in ("running", "waiting")
    head = Text.assemble((clean(told.server), "bold"), f"  rollout {clean(r.id)}  ")
    parts: list[RenderableType] = [head]
    if u is None:
        head.append("cannot be read", style="bold red")
        parts.append(text(told.unread))
    else:
        head.append_text(state(u.state))
        head.append(f"  {words.progress(u)}" if words.progress(u) else "")
        parts += [text(why) for why in dict.fromkeys((u.why, u.keeps_old)) if why]
    parts += [Text.assemble(("Traffic: ", "bold"), words.UNTOUCHED if u is None else clean(u.traffic)), Text()]
    before: float | None = None
    for entry, times in evidence.folded(told.entries):
        parts.append(_line(entry, before, times))
        before = entry.at
        parts += [Padding(_seen(line), (0, 0, 0, 22), expand=False) for line in evidence.lines(entry.detail)]
    if u is None:
        return Group(*parts, Text(), next_line(f"changeover show {r.id}, once Redis is restored"))
    if u.wait is not None:
        parts.append(text(f"waits for: {u.wait.reason} (looks again at {words.clock(u.wait.at)})", "blue"))
    parts += [text(words.slowed(name, bucket), "yellow") for name, bucket in told.slowed.items()]
    if waits and told.frozen is not None:
        parts.append(_frozen(told.frozen))
    parts += [Text(), next_line("changeover unfreeze" if waits else _ways(r, u))]
    return Group(*parts)


def _line(entry: AuditEntry, before: float | None, times: int) -> Text:
    after = "" if before is None else f"+{words.span(entry.at - before)}"
    line = Text.assemble((words.clock(entry.at), "bright_black"), f" {after:>10}  ")
    line.append(clean(words.happened(entry)), style=_STYLES.get(entry.event, ""))
    if times > 1:
        line.append(f"  ({times} times)", style="bright_black")
    if by := evidence.by_whom(entry):
        line.append(f"  by {clean(by)}", style="bright_black")
    return line


_STYLES = {
    "Finished": "green",
    "Undone": "magenta",
    "UndoBegan": "magenta",
    "TurnedBack": "bold red",
    "Held": "bold yellow",
    "Stumbled": "yellow",
    "AttemptEnded": "yellow",
    "Waits": "blue",
}
_MOODS = {"": "", "good": "green", "bad": "red", "warn": "yellow", "soft": "bright_black"}


def _seen(line: evidence.Line) -> Text:
    told = Text("  " if line.deep else "")
    for part, mood in line.parts:
        told.append(clean(part), style=_MOODS[mood])
    return told


# -- plans, doctor, what is left over --------------------------------------------------------------------------------


def plan(p: Plan) -> RenderableType:
    """What would happen."""
    from orchestrator.domain.plan import human

    size = p.fleet["target"]["size"]
    target = f"{_size(size['memory'])} memory, {_size(size['disk'])} disk" + (
        f", {size['type']}" if size.get("type") else ""
    )
    parts: list[RenderableType] = [
        Text.assemble(("Plan ", "bold"), (p.id, "bold"), f"  {clean(str(p.fleet['fleet']))}"),
        text(
            f"{words.many(p.changes, 'server')} to replace in {words.many(len(p.waves), 'wave')}, "
            f"at least {words.span(p.least_seconds)} of soaking and baking, about {p.provider_calls:,} provider calls"
        ),
        text(f"each becomes: {target}"),
        Text(),
    ]
    table = _table("wave", "server", "address", "memory used", "disk used", "in pools", "problem")
    rows = 0
    for index, wave in enumerate(p.waves):
        for name in wave:
            rows += 1
            if rows > 2 * MOST:
                continue
            s = p.server(name)
            table.add_row(
                str(index + 1),
                text(name, "bold"),
                text(s.address),
                f"{human(s.memory_used)} of {human(s.memory)}" if s.memory else "",
                f"{human(s.disk_used)} of {human(s.disk)}" if s.disk else "",
                text(", ".join(f"{seat.pool}:{seat.port}" for seat in s.seats)),
                text(s.problem, "red"),
            )
    parts += [table]
    if rows > 2 * MOST:
        parts.append(text(f"and {rows - 2 * MOST:,} more servers", "bright_black"))
    for title, style, lines in (("Blockers", "bold red", p.blockers), ("To know", "bold", p.caveats)):
        if lines:
            parts += [
                Text(),
                Text(title, style=style),
                *(text(f"  {line}") for line in lines[:MOST]),
                *_more(len(lines)),
            ]
    return Group(*parts)


def rebuilt(found: Rebuilt) -> RenderableType:
    """Where every server stands, as the world says."""
    table = _table("server", "found", "state", "goes on with", title=f"Rollout {found.rollout}, from the world alone")
    for p in found.positions:
        table.add_row(text(p.upgrade.server, "bold"), text(p.found), state(p.upgrade.state), text(p.resumes))
    return table


def _size(written: object) -> str:
    from orchestrator.domain.plan import human

    return human(int(str(written).removesuffix("B")))


def checks(found: Sequence[Check]) -> RenderableType:
    lines: list[RenderableType] = []
    for check in found:
        mark = ("✓ ", "green") if check.ok else ("✗ ", "bold red")
        lines.append(Text.assemble(mark, (clean(check.name), "bold"), f"  {clean(check.detail)}"))
        if not check.ok and check.fix:
            lines.append(Padding(next_line(check.fix), (0, 0, 0, 2), expand=False))
    return Group(*lines)


def tokens(found: Sequence[Token], now: float) -> RenderableType:
    table = _table("id", "name", "may", "fleets", "made by", "last used", "ends")
    for each in found:
        used = "never" if each.used_at is None else f"{words.span(now - each.used_at)} ago"
        ends = "never" if each.expires_at is None else words.moment(each.expires_at)
        if each.revoked_at is not None:
            ends = f"revoked {words.moment(each.revoked_at)}"
        row = (each.id, each.name, ", ".join(each.scopes), ", ".join(each.fleets) or "all", each.created_by, used, ends)
        table.add_row(*(text(cell) for cell in row), style="" if each.holds(now) else "bright_black")
    return table


def inventory(found: Inventory, now: float) -> RenderableType:
    parts: list[RenderableType] = []
    table = _table("rollout", "server", "kind", "state", "id", "kept for", title="Made by us, or ours to end")
    back = [each for each in found.kept if each.item.kind == "old server" and each.item.state == "live"]
    alive = [each for each in found.kept if each.item.state != "deleted" and each not in back]
    for each in alive[: 4 * MOST]:
        item = each.item
        left = "" if item.until is None else words.span(item.until - now) if item.until > now else "due"
        if left == "due" and item.kind == "old server" and (each.rollout, item.server) in found.kept_on:
            left = "kept on"
        left = "yours to delete" if each.yours else left
        table.add_row(text(each.rollout), text(item.server), item.kind, item.state, text(item.id), left)
    parts.append(table)
    gone = len(found.kept) - len(alive) - len(back)
    parts.append(text(f"{words.many(len(alive), 'thing')} kept, {gone:,} deleted already", "bright_black"))
    if found.orphans:
        orphans = _table(
            "lane",
            "kind",
            "id",
            "name",
            "state",
            "rollout",
            "server",
            "",
            title="Carries our mark, and nobody accounts for it",
        )
        for o in found.orphans[:MOST]:
            columns = (o.lane, o.kind, o.id, o.name, o.state, o.rollout, o.server, _standing(o, now))
            orphans.add_row(*(text(v) for v in columns))
        parts += [Text(), orphans, *_more(len(found.orphans))]
    parts += [text(line, "green") for line in found.done]
    parts += [text(f"not done: {line}", "yellow") for line in found.not_done]
    parts += [text(f"{what} could not be read: {why}", "yellow") for what, why in found.unread.items()]
    for (id, server), why in list(found.kept_on.items())[:MOST]:
        parts.append(text(why, "yellow"))
        parts.append(Padding(next_line(f"changeover rollback {id} --server {server}"), (0, 0, 0, 2), expand=False))
    parts += _more(len(found.kept_on))
    if found.sent:
        parts.append(text(f"{words.many(len(found.sent), 'retirement')} sent on their way", "green"))
    elif found.due:
        due = ", ".join(server for _, server in found.due[:5])
        parts.append(text(f"{words.many(len(found.due), 'old server')} due to go: {due}"))
    return Group(*parts)


def _standing(o: Sighting, now: float) -> str:
    """How far it is on its way out, or why it stays."""
    if o.pools:
        return f"serves in {', '.join(o.pools)}: it stays"
    if o.unsure:
        return f"nobody may touch it: {o.unsure}"
    whose = f"{o.doubt or 'of a rollout not known here'}; " if o.foreign else ""
    if o.may_serve and o.quarantined_at is None and o.state == "running":
        whose += "may be serving users: its pools are not known here; "
    if o.quarantined_at is not None:
        return f"{whose}in quarantine for {words.span(now - o.quarantined_at)}"
    return f"{whose}seen for {words.span(o.last - o.first)}"
