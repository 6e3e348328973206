"""The command `changeover`. Nothing heavy is imported before a command needs it: it starts in a blink.

Exit codes: 0 ok, 1 failed, 2 only `plan --detailed-exitcode` with changes, 3 paused or waiting for a person, 4 rolled
back or aborted, 64 usage or bad input, 69 unreachable, 124 wait timeout, 130 Ctrl-C.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from orchestrator.cli import control, looking, output, plans, processes, session
from orchestrator.errors import BadInput, ChangeoverError

# Commands whose modules load with their first use: their place, and their line in `--help`.
LATE = {
    "api": ("orchestrator.cli.api", "Serve the API and the fleet page here, to whoever has a token, until Ctrl-C."),
    "demo": ("orchestrator.cli.demo", "Replace a fleet of real servers under live traffic, here and now."),
    "up": ("orchestrator.cli.up", "Run Redis, workers, the coordinator, Flower and the fleet page here until Ctrl-C."),
    "down": ("orchestrator.cli.up", "End what `up` started here, and the local cloud."),
    "host": ("orchestrator.cli.up", "Run the small local cloud: server processes and HAProxy."),
    "hooks": ("orchestrator.cli.hooks", "Look after webhooks: check their file, list what came, carry it out again."),
    "token": ("orchestrator.cli.tokens", "Say who may ask what over the network: create, list, revoke."),
}
PANELS: dict[str, tuple[Callable[..., int], ...]] = {
    "From a fleet file to a rollout": (plans.plan, plans.apply, plans.doctor, plans.rebuild),
    "Look": (
        looking.rollouts,
        looking.show,
        looking.watch,
        looking.explain,
        looking.events,
        looking.report,
        looking.metrics,
    ),
    "Decide": (
        control.pause,
        control.resume,
        control.approve,
        control.promote,
        control.abort,
        control.rollback,
        control.retry,
        control.settle,
        control.freeze,
        control.unfreeze,
        control.gc,
    ),
    "Run": (processes.worker, processes.coordinator, processes.flower, processes.version),
}


class _Group(TyperGroup):
    """Knows the late commands by name, and imports one when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in LATE:
            module = importlib.import_module(LATE[args[0]][0])
            late = getattr(module, args[0])
            if not isinstance(late, typer.Typer):  # a single command, not a group of them
                command, late = late, typer.Typer(add_completion=False)
                late.command(args[0])(command)
            return args[0], typer.main.get_command(late), args[1:]
        return super().resolve_command(ctx, args)


def build(only: str = "") -> typer.Typer:
    """The whole command line, or as much of it as that one command needs: to look at the parameters of twenty takes
    longer than most of them work."""
    app = typer.Typer(
        cls=_Group,
        name="changeover",
        help="Replaces the servers of large fleets, many at once, without one failed user request.",
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    app.callback(invoke_without_command=True)(_global)
    found = {command.__name__: (panel, command) for panel, commands in PANELS.items() for command in commands}
    if session.remote() and only in found:
        found[only] = (found[only][0], _remote(found[only][1]))
    for name, (panel, command) in found.items():
        if only not in found or name == only:
            app.command(name, rich_help_panel=panel)(command)
    if only not in found:
        for name, (_, line) in LATE.items():
            app.command(name, help=line, rich_help_panel="Run")(_never)
    return app


def _remote(command: Callable[..., int]) -> Callable[..., int]:
    """The same command, asked of the API. One that the API does not serve stays, and says so when it opens Redis."""
    from orchestrator.cli import remote

    asks: Callable[..., int] = getattr(remote, command.__name__, command)

    @functools.wraps(command)
    def asked(**given: Any) -> int:
        return asks(**given)

    return asked


def _global(
    version: bool = typer.Option(False, "--version", help="Say which version this is.", is_eager=True),
) -> None:
    if version:
        processes.version()
        raise typer.Exit


def _never() -> None:
    """Stands for a late command in `--help`; `_Group` puts the real one in its place."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code. No traceback reaches a person unless CHANGEOVER_DEBUG=1."""
    # Imports make objects that stay. To look for garbage among them every 700 is a tenth of a short command's time.
    gc.set_threshold(200_000, *gc.get_threshold()[1:])
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = output.wants_json(args)
    try:
        return _run(args)
    except ChangeoverError as error:
        _debug()
        return output.fail(error, as_json=as_json)
    except TyperException as error:
        return _usage(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort, EOFError):
        output.say("Stopped by Ctrl-C. What workers and coordinators do goes on; changeover rollouts shows it.")
        return output.CANCELLED
    except BrokenPipeError:
        # Whoever read us has gone; the interpreter must not try to write there once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return output.PIPE_CLOSED
    except Exception as error:  # a person gets one line and a way to see more
        _debug()
        told = ChangeoverError(
            f"something unexpected happened: {type(error).__name__}: {error}",
            next="the same command with CHANGEOVER_DEBUG=1 shows where",
        )
        return output.fail(told, as_json=as_json)


def _run(args: list[str]) -> int:
    completing = "_CHANGEOVER_COMPLETE" in os.environ
    command = typer.main.get_command(build("" if completing or not args else args[0]))
    if completing:
        command(prog_name="changeover")  # a shell asks for completions
    try:
        with command.make_context("changeover", args) as context:
            code = command.invoke(context)
            sys.stdout.flush()
    except typer.Exit as ended:
        return ended.exit_code
    return code if isinstance(code, int) else 0


def _usage(error: TyperException, *, as_json: bool) -> int:
    """Usage errors end with 64."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown
        return output.USAGE
    path = context.command_path if context is not None else "changeover"
    bad = BadInput(error.format_message(), next=f"{path} --help")
    return output.fail(bad, as_json=as_json)


def _debug() -> None:
    if os.environ.get("CHANGEOVER_DEBUG"):
        import traceback

        traceback.print_exc()
