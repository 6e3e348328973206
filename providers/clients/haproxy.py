"""HAProxy's runtime socket: plain text commands, plain text answers, no status codes.

One connection per command; several reads travel as one, joined by `;`, so that they describe one process at one
moment. Every name and address is checked before it touches the wire: a newline or a `;` would be a second command.
Answers and limits were measured on HAProxy 2.8.25; other versions are refused.
"""

from __future__ import annotations

import csv
import ipaddress
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from providers.errors import NotFound, Refused, Transient, Unauthorized

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
# The listener's queue is short (`stats maxconn`): under a crowd some connections are refused or reset, and a restart
# takes a moment. Repeating a read is free.
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
LARGEST_ANSWER = 64 * 1024 * 1024
TESTED = "2.8."

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}")
_OPTION = re.compile(r"[A-Za-z0-9_.:/@,+=%()!*-]{1,512}")
_SOCKET = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")

# srv_admin_state is a set of bits. 4 says "disabled in the config file" and stays set after `state ready`.
_MAINTENANCE = 1 | 2 | 32 | 64
_DRAIN = 8 | 16
_CHECK_ENABLED = 4


def valid_name(name: str, what: str) -> str:
    """The name unchanged if HAProxy takes it as one word, else `Refused`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused(f"{what} {name!r} is not a name that HAProxy takes: letters, digits and _ . : - only")
    return name


def valid_option(word: str, where: str) -> str:
    """One word of a server's options that is safe on the wire and in the file, else `Refused`."""
    if not _OPTION.fullmatch(word):
        raise Refused(f"{where}: the option {word!r} has characters that cannot be sent to HAProxy")
    return word


def endpoint(address: str, port: int) -> str:
    """`127.0.0.1:80` or `[::1]:80`. `Refused` unless it is an IP address and a port."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise Refused(f"{address!r} is not an IP address") from None
    if "%" in str(ip):
        raise Refused(f"{address!r} names an interface, which HAProxy does not take")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise Refused(f"{port!r} is not a port from 1 to 65535")
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


@dataclass(frozen=True, kw_only=True)
class Process:
    """The process that answered. `epoch` changes with every restart and reload."""

    pid: int
    started: int
    version: str

    @property
    def epoch(self) -> str:
        return f"{self.pid}:{self.started}"


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server as `show servers state` and `show stat` describe it. `idle_for`: whole seconds since a request was
    last given to it, None if never."""

    name: str
    address: str
    port: int
    status: str
    check_status: str
    check_detail: str
    checked: bool
    maintenance: bool
    drain: bool
    sessions: int
    idle_for: int | None
    weight: int
    backup: bool

    @property
    def ready(self) -> bool:
        return not self.maintenance and not self.drain

    @property
    def up(self) -> bool:
        """Ready, in active use, and fully healthy by its check. `UP 1/2` is a start value or a failing check."""
        return self.ready and self.status == "UP" and self.weight > 0 and not self.backup

    @property
    def words(self) -> str:
        """HAProxy's own words, for a person."""
        return " ".join(word for word in (self.status, self.check_status, self.check_detail) if word)


@dataclass(frozen=True, kw_only=True)
class Totals:
    requests: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    process: Process
    backends: Mapping[str, Mapping[str, Server]] = field(default_factory=dict)
    totals: Mapping[str, Totals] = field(default_factory=dict)

    def servers(self, backend: str) -> Mapping[str, Server]:
        if backend not in self.backends:
            raise NotFound(f"HAProxy has no backend {backend!r}")
        return self.backends[backend]


class _Unanswered(Exception):
    """The connection broke before a whole answer came; `sent` if the command may have been read."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class RuntimeSocket:
    """The admin socket at a path or at `host:port`.

    Raises `Transient` when HAProxy does not answer, `Unauthorized` when the socket may not be used, `Refused` for
    another version of HAProxy.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._tcp: tuple[str, int] | None = None
        if "/" not in where:
            match = _SOCKET.fullmatch(where)
            if not match or not 1 <= int(match["port"]) <= 65535:
                raise Refused(f"HAProxy socket {where!r} is neither an absolute path nor host:port")
            self._tcp = (match["host"].strip("[]"), int(match["port"]))
        elif not where.startswith("/"):
            raise Refused(f"HAProxy socket {where!r} is a relative path; give an absolute one")

    def read(self, *commands: str) -> list[str]:
        """The answers to commands that change nothing; repeated until all of them come whole, for about 2 s."""
        for pause in (*PAUSES, None):
            try:
                answers = self._exchange("; ".join(commands)).split("\n\n")[:-1]
                if len(answers) == len(commands):
                    return answers
                why = _Unanswered(f"{len(answers)} of {len(commands)} answers", sent=True)
            except _Unanswered as error:
                why = error
            if pause is not None:
                time.sleep(pause)
        raise Transient(f"HAProxy at {self.where} does not answer: {why}", ambiguous=False)

    def change(self, command: str) -> str:
        """The answer to a command that changes something. Not repeated once it may have been read: what it was based
        on must be read again first, since another process may have taken over the socket."""
        if ";" in command:
            raise Refused(f"the command {command!r} would be read by HAProxy as more than one")
        for pause in (*PAUSES, None):
            try:
                return self._exchange(command).strip()
            except _Unanswered as error:
                if error.sent or pause is None:
                    raise Transient(f"HAProxy at {self.where}: {error}", ambiguous=error.sent) from None
                time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _connect(self) -> socket.socket:
        try:
            if self._tcp:
                return socket.create_connection(self._tcp, timeout=CONNECT_SECONDS)
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                link.settimeout(CONNECT_SECONDS)
                link.connect(self.where)
            except BaseException:
                link.close()
                raise
        except PermissionError as error:
            raise Unauthorized(f"HAProxy socket {self.where}: {error.strerror}") from None
        except BlockingIOError:
            raise _Unanswered("its queue of connections is full", sent=False) from None
        except OSError as error:
            # Nobody listens: a change must not wait for the next process, which may hold another state.
            raise _Unanswered(f"cannot connect: {error.strerror or error}", sent=True) from None
        return link

    def _exchange(self, command: str) -> str:
        if not command.isprintable():
            raise Refused(f"the command {command!r} would be read by HAProxy as more than one")
        with self._connect() as link:
            deadline = time.monotonic() + READ_SECONDS
            parts: list[bytes] = []
            size = 0
            try:
                link.sendall(command.encode() + b"\n")
                while True:
                    link.settimeout(max(0.001, deadline - time.monotonic()))
                    part = link.recv(1 << 18)
                    if not part:
                        break
                    parts.append(part)
                    size += len(part)
                    if size > LARGEST_ANSWER:
                        raise Refused(f"HAProxy at {self.where} answers without end; is it HAProxy?")
            except OSError as error:
                raise _Unanswered(f"no answer: {error.strerror or error}", sent=True) from None
        answer = b"".join(parts).decode("utf-8", "replace")
        # Every whole answer ends with an empty line, also an empty one.
        if answer != "\n" and not answer.endswith("\n\n"):
            raise _Unanswered("the answer was cut short", sent=True)
        return answer

    def snapshot(self, backend: str | None = None) -> Snapshot:
        """All servers of one backend, or of all, at this moment. `NotFound` for an unknown backend."""
        target = "" if backend is None else " " + valid_name(backend, "backend")
        # Backends and servers of all: asked for by name, a frontend of that name would answer in its place.
        info, state, table = self.read("show info", f"show servers state{target}", "show stat -1 6 -1")
        process = _process(info, self.where)
        for answer in (info, state, table):
            if answer.startswith("Permission denied"):
                raise Unauthorized(f"HAProxy socket {self.where} needs `level admin`")
        if state == "Can't find backend.":
            raise NotFound(f"HAProxy has no backend {backend!r}")
        return _snapshot(process, state, table, self.where)

    def add_server(self, backend: str, name: str, where: str, options: tuple[str, ...]) -> None:
        """The server exists afterwards, in maintenance and unchecked. `Transient` if the name was taken meanwhile."""
        words = " ".join(("add server", f"{backend}/{name}", where, *options))
        answer = self.change(words)
        if answer.startswith("Already exists a server with the same name"):
            raise Transient(f"{backend}/{name} was added by somebody else at the same moment", ambiguous=True)
        # A warning may stand before it.
        if answer.splitlines()[-1:] != ["New server registered."]:
            raise _denied(answer, words)

    def set_server(self, backend: str, name: str, what: str) -> None:
        """`state ready|drain|maint` or `health down`. `NotFound` if the server or backend went away."""
        self._quiet(f"set server {backend}/{name} {what}")

    def enable_health(self, backend: str, name: str) -> None:
        """Checks run afterwards. `Refused` if the server has none."""
        self._quiet(f"enable health {backend}/{name}")

    def shutdown_sessions(self, backend: str, name: str) -> None:
        """Every request in flight at the server is cut."""
        self._quiet(f"shutdown sessions server {backend}/{name}")

    def del_server(self, backend: str, name: str) -> str:
        """`gone`; `held` while connections hang on it; `changed` if it is no longer in maintenance."""
        answer = self.change(command := f"del server {backend}/{name}")
        match answer:
            case "Server deleted." | "No such server.":
                return "gone"
            case "Server still has connections attached to it, cannot remove it.":
                return "held"
            case "Only servers in maintenance mode can be deleted.":
                return "changed"
            case _:
                raise _denied(answer, command)

    def _quiet(self, command: str) -> None:
        if answer := self.change(command):
            raise _denied(answer, command)


def _denied(answer: str, command: str) -> Exception:
    line = answer.splitlines()[0] if answer else "(empty)"
    message = f"HAProxy answered {line!r} to {command!r}"
    if answer in ("No such server.", "No such backend."):
        return NotFound(message)
    if line.startswith("Permission denied"):
        return Unauthorized(f"{message}; the socket needs `level admin`")
    return Refused(message)


def _process(info: str, where: str) -> Process:
    facts = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
    try:
        process = Process(pid=int(facts["Pid"]), started=int(facts["Start_time_sec"]), version=facts["Version"])
    except (KeyError, ValueError):
        raise Refused(f"what listens at {where} does not answer `show info` as HAProxy does") from None
    if not process.version.startswith(TESTED):
        raise Refused(f"HAProxy at {where} is {process.version}; only {TESTED}x is tested, others answer differently")
    return process


def _snapshot(process: Process, state: str, table: str, where: str) -> Snapshot:
    try:
        admin = _states(state)
        rows = csv.reader(table.removeprefix("# ").split("\n"))  # a server's own words may hold other line ends
        column = {name: index for index, name in enumerate(next(rows))}
        backends: dict[str, dict[str, Server]] = {}
        totals: dict[str, Totals] = {}
        for row in filter(None, rows):
            cell = {name: row[column[name]] for name in _WANTED}
            if cell["type"] == "1":
                backends.setdefault(cell["pxname"], {})
                totals[cell["pxname"]] = _totals(cell)
            elif cell["type"] == "2" and (key := (cell["pxname"], cell["svname"])) in admin:
                backends.setdefault(key[0], {})[key[1]] = _server(cell, admin[key])
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise Refused(f"HAProxy at {where}: cannot read its statistics ({error!r})") from None
    return Snapshot(process=process, backends=backends, totals=totals)


_WANTED = (
    *("pxname", "svname", "type", "mode", "status", "weight", "bck", "check_status", "last_chk", "lastsess"),
    *("scur", "qcur", "stot", "req_tot", "econ", "eresp", "hrsp_5xx", "srv_abrt"),
)


def _states(state: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of `show servers state`: a version, a header, then one line per server."""
    lines = state.split("\n")
    if lines[0] != "1":
        raise ValueError(f"format {lines[0]!r} of `show servers state`")
    header = lines[1].removeprefix("# ").split()
    found = (dict(zip(header, line.split(), strict=True)) for line in lines[2:])
    return {(one["be_name"], one["srv_name"]): one for one in found}


def _server(cell: Mapping[str, str], state: Mapping[str, str]) -> Server:
    admin = int(state["srv_admin_state"])
    idle_for = int(cell["lastsess"] or -1)
    return Server(
        name=state["srv_name"],
        address=state["srv_addr"],
        port=int(state["srv_port"]),
        status=cell["status"],
        check_status=cell["check_status"].removeprefix("* "),
        check_detail=cell["last_chk"],
        checked=bool(int(state["srv_check_state"]) & _CHECK_ENABLED),
        maintenance=bool(admin & _MAINTENANCE),
        drain=bool(admin & _DRAIN) and not admin & _MAINTENANCE,
        sessions=int(cell["scur"] or 0) + int(cell["qcur"] or 0),
        idle_for=None if idle_for < 0 else idle_for,
        weight=int(cell["weight"] or 0),
        backup=cell["bck"] == "1",
    )


def _totals(cell: Mapping[str, str]) -> Totals:
    def number(name: str) -> int:
        return int(cell[name] or 0)

    if cell["mode"] == "http":
        # hrsp_5xx of a backend counts every 5xx that a user saw, HAProxy's own 502, 503 and 504 among them, so econ and
        # eresp are in it; srv_abrt are answers that broke off after their first line.
        return Totals(requests=number("req_tot"), failed=number("hrsp_5xx") + number("srv_abrt"))
    return Totals(requests=number("stot"), failed=number("econ") + number("eresp"))


def same_process(pid: int, like: int) -> bool | None:
    """Whether `pid` is still a process of the same program as `like`; None if this machine does not show `like`."""
    try:
        program = Path(f"/proc/{like}/comm").read_text()
    except OSError:
        return None
    try:
        return Path(f"/proc/{pid}/comm").read_text() == program
    except OSError:
        return False
