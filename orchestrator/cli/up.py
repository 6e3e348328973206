"""`up`, `down` and `host`: the control plane in one terminal, its end, and the small local cloud under it."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import say
from orchestrator.errors import BadInput, ChangeoverError, NotFound, Unreachable, UnsafeStore, WaitTimeout
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.supervisor import Supervisor

HOST_SOCKET, HOST_LOCK = "host.sock", "host.lock"
INVITED = "invited"  # the id of the token behind the link that `up` has printed
_TOLD = 10  # servers that are named before they are stopped
_READY_WITHIN = 120.0  # seconds; two or three on an idle machine, and a crash loop is noticed long before


def up(
    workers: Annotated[int, typer.Option(min=0, max=64, help="Worker processes.")] = 2,
    flower: Annotated[bool, typer.Option(help="Serve Flower, which shows every task.")] = True,
    flower_port: Annotated[int, typer.Option(min=0, max=65535, help="Flower's port; 0: the system chooses.")] = 0,
    page: Annotated[bool, typer.Option(help="Serve the API and the fleet page.")] = True,
    page_port: Annotated[int, typer.Option(min=0, max=65535, help="Their port; 0: the system chooses.")] = 0,
) -> None:
    """Run Redis, workers, the coordinator, Flower and the fleet page here until Ctrl-C.

    Servers and HAProxy belong to `changeover host`, and live on.
    """
    from orchestrator.supervisor import start

    settings = Settings.load()
    told: list[int] = []
    supervisor: Supervisor | None = None

    def tell(signum: int, _frame: object) -> None:
        told.append(signum)
        if supervisor is not None:
            supervisor.tell()
        elif len(told) == 1:
            raise KeyboardInterrupt  # it is still starting: what has begun is ended on the way out

    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, tell)
    try:
        supervisor = start(
            settings,
            workers=workers,
            with_flower=flower,
            flower_port=flower_port,
            with_page=page,
            page_port=page_port,
            say=say,
        )
    except KeyboardInterrupt:
        say("stopped before it was ready; nothing of it runs")
        return
    try:
        supervisor.wait_ready(_READY_WITHIN)
        _end_visits(supervisor)  # of one that was killed
        if not supervisor.told:
            _tell_where(supervisor, settings)
        supervisor.run()
        say("stopping: workers finish what they have in hand (Ctrl-C again: at once)")
    finally:
        try:
            _end_visits(supervisor)  # while its Redis answers
        finally:
            supervisor.stop()
    say("stopped; nothing of it runs. Servers and HAProxy live on; `changeover down` ends these too")


def down(
    host: Annotated[
        Path | None, typer.Option("--host", help="State folder of the local cloud.", show_default="STATE/host")
    ] = None,
    keep_host: Annotated[
        bool, typer.Option("--keep-host", help="Leave servers and HAProxy as they are: they go on serving.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before servers and HAProxy stop.")] = False,
) -> int:
    """End what `up` started here, and the local cloud with its servers and HAProxy. Asks before these stop serving."""
    settings = Settings.load()
    folder = host or host_folder(settings)
    if not keep_host and not yes and (serving := _serving(folder)) and not _agreed(folder, serving):
        say("Nothing was ended. Traffic: every server goes on serving.\nNext: changeover down --keep-host")
        return 1
    _end_up(settings)
    if not keep_host:
        _end_host(folder)
    return 0


def host(
    state: Annotated[Path | None, typer.Option("--state", help="Its state folder.", show_default="STATE/host")] = None,
    detach: Annotated[bool, typer.Option(help="Return once it is ready.")] = False,
) -> None:
    """Run the small local cloud: the server processes and HAProxy of the `local` provider.

    It has a session of its own and survives this terminal. Ctrl-C here ends it with all its servers.
    """
    folder = (state or host_folder(Settings.load())).expanduser().absolute()
    process = _start_host(folder)
    if not detach:  # before a word is said: whoever reads it may answer with Ctrl-C
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(which, lambda *_: process.terminate())
    say(f"host ready: process {process.pid}, {folder}")
    if detach:
        return
    code = process.wait()
    say("host ended, and its servers and HAProxy with it")
    raise SystemExit(code)


def host_folder(settings: Settings) -> Path:
    """Where the local cloud lives unless somebody says otherwise."""
    return settings.state_dir.expanduser().absolute() / "host"


def _serving(folder: Path) -> str:
    """What would stop with the local cloud, in words; empty if nothing would."""
    where = folder / HOST_SOCKET
    try:
        servers = [f"{s['name']} ({s['address']})" for s in _ask(where, "GET", "/servers") if s["state"] == "running"]
        balancers = [f"HAProxy {balancer['config']}" for balancer in _ask(where, "GET", "/haproxy")]
    except (FileNotFoundError, ConnectionRefusedError):  # no host, or a killed one, whose servers live on
        return ""
    except OSError as error:
        return f"whatever runs there: the host does not answer, {error}"
    told = servers[:_TOLD] + ([f"{len(servers) - _TOLD} more servers"] if len(servers) > _TOLD else []) + balancers
    return ", ".join(told)


def _agreed(folder: Path, serving: str) -> bool:
    """Raises `BadInput` where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadInput(
            f"this would end the local cloud on {folder} for its users, and nobody is there to say yes (no terminal): "
            f"{serving}",
            place="down",
            next="changeover down --keep-host   ends `up` alone; changeover down --yes   ends all of it",
        )
    say(f"This ends the local cloud on {folder}. Users lose: {serving}.")
    return typer.confirm("End it all? (--keep-host ends `up` alone)", default=False, err=True)


def _tell_where(supervisor: Supervisor, settings: Settings) -> None:
    from orchestrator.addresses import where

    say(f"ready. Redis   {where(supervisor.redis_url)}")
    if supervisor.page_url:
        say(f"       Page    {supervisor.page_url}{_way_in(supervisor)}")
    if supervisor.flower_url:
        say(f"       Flower  {supervisor.flower_url}  user and password: {supervisor.flower_credentials}")
    say(f"       logs    {settings.state_dir / 'logs'}")
    say("       Ctrl-C stops it")


def _way_in(supervisor: Supervisor) -> str:
    """Whoever sees this terminal may decide as with any other command: a link by which their browser comes in, once. A
    log may be read by others."""
    from orchestrator.cli import session
    from orchestrator.state_folder import write_private
    from orchestrator.store.redis import RedisStore
    from orchestrator.web import sessions

    if not sys.stderr.isatty():
        return "/  with a token: changeover token create NAME --scope read"
    store = RedisStore(supervisor.redis_url, namespace=supervisor.settings.namespace, connections=2)
    try:
        token, path = sessions.invite(store, session.person(), ["admin"], actor=session.actor())
        write_private(supervisor.settings.state_dir / INVITED, token.id)
    finally:
        store.close()
    return f"{path}  lets one browser in, once, within the hour"


def _end_visits(supervisor: Supervisor) -> None:
    """Whoever came in by the link of an `up` on this folder is let in no longer, and nobody by the link."""
    from orchestrator import tokens
    from orchestrator.store.redis import RedisStore

    invited = supervisor.settings.state_dir / INVITED
    try:
        id = invited.read_text()
    except FileNotFoundError:
        return
    store = RedisStore(supervisor.redis_url, namespace=supervisor.settings.namespace, connections=2)
    try:
        with suppress(NotFound):  # another Redis than it was made in
            tokens.revoke(store, id)
        invited.unlink()
    except (Unreachable, UnsafeStore) as error:
        say(f"the link to the page holds on, for nine hours at most: {error.message}")
    finally:
        store.close()


def _end_up(settings: Settings) -> None:
    from orchestrator.state_folder import StateFolder

    folder = StateFolder.open(settings.state_dir)
    pid = folder.holder()
    if pid is None:
        say(f"`up` does not run on {folder.path}")
        return
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while folder.holder() is not None:
        if time.monotonic() > deadline:
            raise WaitTimeout(f"process {pid} on {folder.path} was told to end and has not", next=f"kill -9 {pid}")
        time.sleep(0.05)
    say(f"`up` (process {pid}) ended")


def _end_host(folder: Path) -> None:
    from orchestrator.state_folder import is_locked

    where = folder / HOST_SOCKET
    if not where.exists():
        say(f"no host runs on {folder}")
        return
    try:
        _ask(where, "DELETE", "/")
    except ConnectionRefusedError:
        say(f"no host runs on {folder}: it was killed. `changeover host` on that folder takes up what it left")
        return
    except OSError as error:
        raise Unreachable(f"the host on {folder} does not answer: {error}", next=f"less {folder}/host.log") from None
    deadline = time.monotonic() + 60
    while is_locked(folder / HOST_LOCK):
        if time.monotonic() > deadline:
            raise WaitTimeout(f"the host on {folder} was told to end and has not", next=f"less {folder}/host.log")
        time.sleep(0.05)
    say(f"host on {folder} ended, and its servers and HAProxy with it")


def _ask(where: Path, method: str, path: str) -> Any:
    connection = http.client.HTTPConnection("host", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(30)
    try:
        connection.sock.connect(str(where))
        connection.request(method, path)
        answer = connection.getresponse()
        if answer.status >= http.client.BAD_REQUEST:
            raise Unreachable(f"the host refused {method} {path}: {answer.status} {answer.read(500).decode()}")
        return json.loads(answer.read() or b"null")
    finally:
        connection.close()


def _start_host(folder: Path) -> subprocess.Popen[bytes]:
    """The daemon as a program of its own, in its own session, once it serves."""
    heard, said = os.pipe()
    command = [sys.executable, "-P", "-m", "providers.local_host", "--state", str(folder), "--ready-fd", str(said)]
    process = subprocess.Popen(  # noqa: S603  # our own module, no shell
        command, stdin=subprocess.DEVNULL, pass_fds=[said], start_new_session=True, cwd="/"
    )
    os.close(said)
    try:
        ready, _, _ = select.select([heard], [], [], _READY_WITHIN)
        if ready and os.read(heard, 16):
            return process
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        os.close(heard)
    if not ready:
        process.terminate()
        raise WaitTimeout(
            f"the host on {folder} is not ready after {_READY_WITHIN:g} s", next=f"less {folder}/host.log"
        )
    code = process.wait()
    what = f"no host could be started on {folder}; it said why above"
    raise BadInput(what, place="--state") if code == BadInput.exit_code else ChangeoverError(what)
