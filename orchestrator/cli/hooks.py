"""`hooks check`, `hooks secret`, `hooks list`, `hooks redeliver` and `hooks outbox`: webhooks, in and out."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import output, session
from orchestrator.cli.output import Format, Output

if TYPE_CHECKING:
    from orchestrator import documents

hooks = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Look after webhooks, docs/webhooks.md. The API takes them (changeover api --hooks FILE), workers send them.",
)


@hooks.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The hook file.", show_default=False)],
    outgoing: Annotated[bool, typer.Option("--outgoing", help="It is the file of webhooks that go out.")] = False,
    form: Output = Format.text,
) -> int:
    """Say what a hook file would do, or what is wrong with it, its secrets or its fleet files."""
    from orchestrator import hook_file

    if outgoing:
        return _check_outgoing(file, form)
    found = hook_file.load(file)
    told = [
        {
            "name": name,
            "scheme": known.hook.scheme,
            "secrets": len(known.keys),
            "rules": [
                {"event": rule.event, "when": dict(rule.when), "verb": rule.verb, "fleet": found.about(rule)}
                for rule in known.hook.rules
            ],
        }
        for name, known in found.known.items()
    ]
    if form is Format.json:
        output.emit("hooks", {"hooks": told})
        return 0
    for name, known in found.known.items():
        output.tell(f"/hooks/{name}   signed as {known.hook.scheme}, by one of {len(known.keys)}")
        for rule in known.hook.rules:
            conditions = [rule.event or "", *(f"{where} is {wanted!r}" for where, wanted in rule.when.items())]
            put = rule.start.set.items() if rule.start is not None else ()
            taken = f" with {', '.join(f'{place} from {where}' for place, where in put)}" if put else ""
            output.tell(f"  {rule.verb} {found.about(rule)}{taken}   if {', '.join(filter(None, conditions))}")
    return 0


def _check_outgoing(file: Path, form: Format) -> int:
    from orchestrator import hook_file

    known = hook_file.receivers(file)
    told: list[dict[str, Any]] = [
        {
            "name": name,
            "url": each.receiver.url,
            "secrets": len(each.keys),
            "events": each.receiver.events or "usual",
            "fleets": each.receiver.fleets,
        }
        for name, each in known.items()
    ]
    if form is Format.json:
        output.emit("receivers", {"receivers": told})
        return 0
    for each in told:
        events = each["events"] if isinstance(each["events"], str) else ", ".join(each["events"])
        output.tell(f"{each['name']}   {each['url']}   {events} of {', '.join(each['fleets']) or 'all fleets'}")
    return 0


@hooks.command()
def outbox(form: Output = Format.text) -> int:
    """Say how far each receiver of webhooks has been told, of each rollout that is followed."""
    from orchestrator import schema

    with session.opened() as s:
        feeds = [(feed, feed.behind(s.store.last_event(feed.rollout))) for feed in s.store.feeds()]
    if form is Format.json:
        output.emit("outbox", {"feeds": [schema.feed(feed, behind=behind) for feed, behind in feeds]})
        return 0
    if not feeds:
        output.say("Nobody is being told of anything.\nNext: docs/webhooks.md says how CHANGEOVER_NOTIFY names who is")
    for feed, behind in feeds:
        left = f", {feed.left} left out" if feed.left else ""
        why = f": {feed.why}" if feed.why else ""
        state = f"fails, {feed.attempts} times in a row" if feed.attempts else "is behind" if behind else "knows all"
        output.tell(f"{feed.receiver}  {feed.rollout}  {feed.told} told{left}, {state}{why}")
    return 0


@hooks.command()
def secret() -> int:
    """Make a secret and print it, for the sender and for a file that the hook file names."""
    import base64
    import secrets

    from orchestrator.domain.signatures import PREFIX

    output.tell(PREFIX + base64.b64encode(secrets.token_bytes(32)).decode())
    return 0


@hooks.command("list")
def list_(
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="As many, the newest first.")] = 20,
    form: Output = Format.text,
) -> int:
    """List what came, and what came of it."""
    from orchestrator import words

    found = _deliveries(most)
    if form is Format.json:
        output.emit("deliveries", {"deliveries": found})
        return 0
    if not found:
        output.say("Nothing has come yet.\nNext: changeover api --hooks FILE")
    for each in found:
        what = f"{each['verb']} {each['fleet']}" if each["verb"] else "nothing"
        came = f"{words.moment(each['received_at'])}  {each['id']}  {each['hook']}  {each['event'] or '-'}"
        output.tell(f"{came}  {what}: {each['state']}" + (f": {each['why']}" if each["why"] else ""))
    return 0


def _deliveries(most: int) -> list[documents.Delivery]:
    from orchestrator import schema

    if session.remote():
        with session.api() as client:
            return list(islice(client.deliveries(), most))
    with session.opened() as s:
        return [schema.delivery(each) for each in s.store.deliveries()[:most]]


@hooks.command()
def redeliver(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `hooks list` says it.", show_default=False)],
    form: Output = Format.text,
) -> int:
    """Carry a delivery out once more, by the rules as they are now. What it has started is not started again; an
    approval is refused."""
    done = _redelivered(id)
    if form is Format.json:
        output.emit("redelivered", done)
        return 0
    already = "" if done["changed"] else " It was so already."
    output.tell(f"{id} will be carried out by an API that has its hook.{already}")
    output.say_unconfirmed(done["confirmed"], f"Again: changeover hooks redeliver {id}")
    output.say(f"Next: {done['next']}")
    return 0


def _redelivered(id: str) -> documents.Redelivered:
    from orchestrator import hooks as webhooks
    from orchestrator import operations, schema

    if session.remote():
        with session.api() as client:
            return client.redeliver(id)
    with session.opened() as s:
        found, changed = webhooks.redeliver(s.store, id)
        return schema.redelivered(found, changed=changed, confirmed=operations.confirmed(s.store))
