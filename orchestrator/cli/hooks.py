"""`hooks check`, `hooks secret`, `hooks list` and `hooks redeliver`: what comes in by webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.output import Format, Output

hooks = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Look after webhooks that come in: docs/webhooks.md. The API takes them: changeover api --hooks FILE.",
)


@hooks.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The hook file.", show_default=False)],
    form: Output = Format.text,
) -> int:
    """Say what a hook file would do, or what is wrong with it, its secrets or its fleet files."""
    from orchestrator import hook_file

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
            output.tell(f"  {rule.verb} {found.about(rule)}   if {', '.join(filter(None, conditions))}")
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
    from orchestrator import schema, words

    with session.opened() as s:
        found = s.store.deliveries()[:most]
    if form is Format.json:
        output.emit("deliveries", {"deliveries": [schema.delivery(each) for each in found]})
        return 0
    if not found:
        output.say("Nothing has come yet.\nNext: changeover api --hooks FILE")
    for each in found:
        what = f"{each.verb} {each.fleet}" if each.verb else "nothing"
        line = f"{words.moment(each.received_at)}  {each.id}  {each.hook}  {each.event or '-'}  {what}: {each.state}"
        output.tell(line + (f": {each.why}" if each.why else ""))
    return 0


@hooks.command()
def redeliver(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `hooks list` says it.", show_default=False)],
    form: Output = Format.text,
) -> int:
    """Carry a delivery out once more, by the rules as they are now. What it has started is not started again."""
    from orchestrator import hooks as webhooks
    from orchestrator import operations, schema

    with session.opened() as s:
        found, changed = webhooks.redeliver(s.store, id)
        confirmed = operations.confirmed(s.store)
    if form is Format.json:
        output.emit("redelivered", schema.redelivered(found, changed=changed, confirmed=confirmed))
        return 0
    output.tell(f"{id} will be carried out by an API that has its hook." + ("" if changed else " It was so already."))
    output.say_unconfirmed(confirmed, f"Again: changeover hooks redeliver {id}")
    output.say("Next: changeover hooks list")
    return 0
