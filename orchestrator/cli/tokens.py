"""`token create`, `token list` and `token revoke`: who may ask what over the network."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.output import Format, Output
from orchestrator.errors import BadInput

token = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Say who may ask what over the network. A token is shown once; only its SHA-256 is kept.",
)


@token.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; audit logs say it.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="What it may: read, plan, run, admin. Repeat it.", show_default=False),
    ] = None,
    fleet: Annotated[
        list[str] | None,
        typer.Option("--fleet", metavar="NAME", help="Only for this fleet. May be repeated.", show_default="all"),
    ] = None,
    expires: Annotated[str, typer.Option("--expires", help="When it ends: 12h, 90d, or never.")] = "90d",
    form: Output = Format.text,
) -> int:
    """Make a token and print it, this once: nobody can look it up again."""
    from orchestrator import schema, tokens, words

    seconds = _seconds(expires)
    with session.opened() as s:
        made, shown = tokens.create(
            s.store, name, scope or (), actor=session.actor(), fleets=fleet or (), seconds=seconds
        )
        now = s.store.now()
    if form is Format.json:
        output.emit("token", {**schema.token(made, now=now), "shown": shown})
        return 0
    output.tell(shown)
    ends = "until it is revoked" if made.expires_at is None else f"until {words.moment(made.expires_at)}"
    about = ", ".join(made.fleets) if made.fleets else "all fleets"
    output.say(f"{made.name} may {', '.join(made.scopes)} of {about}, {ends}. It is not shown again.")
    output.say(f"Next: changeover token revoke {made.id}   when it is no longer wanted")
    return 0


@token.command("list")
def list_(form: Output = Format.text) -> int:
    """List the tokens, those too that let nobody in any more."""
    from orchestrator import schema

    with session.opened() as s:
        found, now = s.store.tokens(), s.store.now()
    if form is Format.json:
        output.emit("tokens", {"tokens": [schema.token(each, now=now) for each in found]})
        return 0
    if not found:
        output.say("There is no token: nobody can ask over the network.\nNext: changeover token create --help")
        return 0
    from orchestrator.cli import pictures

    output.console().print(pictures.tokens(found, now))
    return 0


@token.command()
def revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `token list` says it.", show_default=False)],
    form: Output = Format.text,
) -> int:
    """Let nobody in by this token from now on."""
    from orchestrator import schema, tokens

    with session.opened() as s:
        revoked, changed = tokens.revoke(s.store, id)
        now = s.store.now()
    if form is Format.json:
        output.emit("revoked", {"changed": changed, "token": schema.token(revoked, now=now)})
        return 0
    output.tell(f"{revoked.name}'s token {id} lets nobody in any more." + ("" if changed else " It was so already."))
    return 0


def _seconds(text: str) -> float | None:
    """How long it holds; None: for ever."""
    if text == "never":
        return None
    from pydantic import TypeAdapter, ValidationError

    from orchestrator.domain.fleet import Positive

    try:
        seconds: float = TypeAdapter(Positive).validate_python(text)
    except ValidationError:
        raise BadInput(
            f"{text!r} is no time to hold: write 12h, 90d or never, a year at most",
            place="--expires",
            next="changeover token create --help",
        ) from None
    return seconds
