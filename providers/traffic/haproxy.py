"""HAProxy 2.8 by its runtime socket: no reload, and nothing believed but HAProxy's own view.

In: written to the config file as `disabled`, added in maintenance, drained (checks run, no user comes), its old check
results forgotten, and only when HAProxy itself has found it healthy made ready; then the file loses the `disabled`. A
restart at any moment in between reads `disabled` and exposes nobody.

Out: drained while the others are UP, and made ready again if right afterwards they no longer are; then, without
sessions, put in maintenance, taken out of the file and deleted. HAProxy refuses the deletion as long as a connection
hangs on the server: its success is the proof of being idle.

In the file, `disabled` on a server that drains therefore means: its gate has begun and its results are fresh.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from providers import Caps, Finding
from providers.clients.haproxy import (
    Process,
    RuntimeSocket,
    Server,
    endpoint,
    same_process,
    valid_name,
    valid_option,
)
from providers.clients.haproxy_config import Backend, Config, ConfigFile, ServerLine
from providers.errors import Conflict, GuardRefused, Refused, Transient
from providers.rights import Rights
from providers.traffic import Guard, Member, MemberView, PoolCounters

DEFAULT_CHECK = "inter 200ms fastinter 100ms rise 2 fall 2"
# How long one advance may wait for what it has just asked for.
MOMENT_SECONDS = 0.05
# An advance is read and decided anew when HAProxy was restarted under it.
TRIES = 4

_CHECK = re.compile(r"(?:(?:inter|fastinter|downinter) \d{1,6}(?:ms|s|m)?|(?:rise|fall) \d{1,3})(?: (?=\S)|$)")
_PROVEN = ("L7OK", "L7OKC")
_PORT_ONLY = ("L4OK", "L6OK")
_SETTINGS = frozenset({"provider", "socket", "config", "binary", "check", "pools", "quiet"})


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is true of one backend now: in the process, and in the file."""

    process: Process
    name: str
    servers: Mapping[str, Server]
    config: Config
    backend: Backend
    notes: Mapping[str, Any]

    def line(self, name: str) -> ServerLine | None:
        return self.backend.servers.get(name)

    def note(self, name: str) -> Mapping[str, Any]:
        found = self.notes.get(f"{self.name}/{name}")
        return found if isinstance(found, Mapping) else {}

    def gated(self, name: str) -> bool:
        """Whether the file's `disabled` stands for a gate: on a server that we drained it is left from an older one."""
        line = self.line(name)
        return line is not None and line.disabled and "drained_in" not in self.note(name)

    def view(self, name: str) -> MemberView:
        server, line = self.servers.get(name), self.line(name)
        if server is None:
            place = (line.address, line.port) if line else ("", 0)
            return MemberView(name=name, address=place[0], port=place[1], state="absent")
        leaving = line is None or "drained_in" in self.note(name)
        return _view(server, gated=self.gated(name), leaving=leaving)


class HAProxyTraffic:
    """Settings: `socket` (absolute path, or host:port; needs `level admin`), `config` (absolute path of haproxy.cfg on
    this machine), `pools` ({pool: {backend: NAME}}; a pool's backend has its name unless said), `check` (options of the
    check where the backend's servers have none), `quiet` (seconds without a new request before a drained server counts
    as idle; at least so many, up to 2 more; default 0), `binary` (haproxy to check the config with).

    What it needs from the configuration: `balance` with a dynamic algorithm, `option httpchk` (or another check that
    asks the application), `stats maxconn` well above 10, no `http-reuse never`, and a `timeout check` of seconds: else
    a check that takes longer than `inter` counts as failed, and a busy machine loses all its servers at once.

    Which processes a drain began in is noted beside the config. After a reload the old process keeps its sessions and
    the new one does not know them, so a server is not reported absent while that old process lives (`cut` does not
    wait). A process that ended before the drain began is not known to us.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if unknown := sorted(set(settings) - _SETTINGS):
            raise Refused(f"traffic settings: unknown {', '.join(map(repr, unknown))}; known: {_known()}")
        self._where = _text(settings, "socket")
        self._socket = RuntimeSocket(self._where)
        binary = _text(settings, "binary") if settings.get("binary") is not None else None
        self._file = ConfigFile(_text(settings, "config"), binary=binary)
        self._check = _text({"check": DEFAULT_CHECK, **settings}, "check")
        if not re.fullmatch(rf"(?:{_CHECK.pattern})+", self._check):
            raise Refused(f"traffic settings: check {self._check!r} is not like {DEFAULT_CHECK!r}")
        self._quiet = _seconds(settings.get("quiet", 0))
        self._pools = _pools(settings.get("pools") or {})

    @property
    def caps(self) -> Caps:
        return Caps(batch=1000)

    def lane(self, pool: str) -> str:
        self._backend(pool)
        return f"haproxy:{self._where}"

    def members(self, pool: str) -> Sequence[MemberView]:
        look = self._look(self._backend(pool))
        return tuple(look.view(name) for name in look.servers)

    def proven(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        looks = self._looks(pool for pool, _ in wanted)
        return {(pool, name): looks[self._backend(pool)].view(name) for pool, name in wanted}

    def idle(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        looks = self._looks(pool for pool, _ in wanted)
        return {(pool, name): self._leaving(looks[self._backend(pool)], name) for pool, name in wanted}

    def counters(self, pool: str) -> PoolCounters | None:
        backend = self._backend(pool)
        snapshot = self._socket.snapshot(backend)
        snapshot.servers(backend)
        totals = snapshot.totals[backend]
        return PoolCounters(requests=totals.requests, failed=totals.failed, epoch=snapshot.process.epoch)

    def prepare(self, pool: str, _name: str) -> float:
        self._backend(pool)
        return 0.0

    def settled(self, pool: str, _name: str) -> None:
        self._backend(pool)

    def elsewhere(self, addresses: Collection[str]) -> Mapping[str, Sequence[str]]:
        wanted, ours = {_ip(address): address for address in addresses}, set(self._pools.values())
        found: dict[str, list[str]] = {}
        for backend, servers in self._socket.snapshot().backends.items():
            for server in servers.values() if backend not in ours else ():
                if (address := wanted.get(_ip(server.address))) and server.ready:
                    found.setdefault(address, []).append(f"{server.name} of backend {backend}")
        return found

    def reaches(self, pool: str, zone: str, /) -> str:  # noqa: ARG002 - it asks servers by their addresses
        return ""

    def examine(self) -> Sequence[Finding]:
        return ()

    def rights(self, *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002
        return ()

    def add(self, pool: str, member: Member) -> MemberView:
        backend = _checked(self._backend(pool), member)
        return self._advance(lambda: self._add(backend, member))

    def restore(self, pool: str, member: Member) -> MemberView:
        backend = _checked(self._backend(pool), member)
        return self._advance(lambda: self._restore(backend, member))

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        backend = self._backend(pool)
        valid_name(name, "server")
        return self._advance(lambda: self._remove(backend, name, guard=guard, cut=cut))

    # Reading

    def _backend(self, pool: str) -> str:
        return self._pools.get(pool) or valid_name(pool, "pool")

    def _looks(self, pools: Iterable[str]) -> dict[str, _Look]:
        """One look at the balancer for all these pools, by backend."""
        names = {self._backend(pool) for pool in pools}
        if not names:
            return {}
        snapshot = self._socket.snapshot(next(iter(names)) if len(names) == 1 else None)
        config, notes = self._file.read(), self._file.notes()
        return {
            name: _Look(
                process=snapshot.process,
                name=name,
                servers=snapshot.servers(name),
                config=config,
                backend=config.backend(name),
                notes=notes,
            )
            for name in names
        }

    def _look(self, backend: str) -> _Look:
        return self._looks([backend])[backend]

    def _idle(self, server: Server) -> bool:
        # HAProxy counts in whole seconds, by the clock's ticks: 1 may be a millisecond ago.
        quiet = math.ceil(self._quiet) + 1 if self._quiet else 0
        return server.sessions == 0 and (server.idle_for is None or server.idle_for >= quiet)

    def _leaving(self, look: _Look, name: str) -> MemberView:
        view, server = look.view(name), look.servers.get(name)
        if view.state not in ("absent", "draining", "leaving"):
            return view
        if unknown := _unknown_sessions(look.note(name), look.process):
            return replace(view, state="leaving" if view.state == "absent" else view.state, detail=unknown)
        return replace(view, actionable=server is not None and self._idle(server))

    # Advancing

    def _advance(self, act: Callable[[], MemberView]) -> MemberView:
        for _ in range(TRIES - 1):
            try:
                with self._file.writer():
                    return act()
            except Transient as error:
                # The world changed between the look and the act: look again.
                if not error.ambiguous:
                    raise
        with self._file.writer():
            return act()

    def _add(self, backend: str, member: Member) -> MemberView:
        look = self._look(backend)
        name = member.name
        server, line = look.servers.get(name), look.line(name)
        _same_place(member, server, line, look)
        if server is None:
            self._attach(look, member)
        elif server.maintenance:
            self._write(look, member, disabled=True)
            self._gate(backend, name)
        elif server.drain:
            self._advance_gate(look, member, server)
        elif server.status == "no check":
            self._check_first(look, member)
        elif server.status == "UP" and (line is None or line.disabled):
            self._write(look, member, disabled=False)
        self._file.note(f"{backend}/{name}", None)
        return self._after(backend, name)

    def _attach(self, look: _Look, member: Member) -> None:
        options = self._options(look, member.name)
        self._write(look, member, disabled=True)
        where = endpoint(member.address, member.port)
        try:
            self._socket.add_server(look.name, member.name, where, options)
        except Refused:
            # It would join at the next restart, unseen by us: as if never asked.
            now = self._file.read()
            if look.line(member.name) is None:
                self._file.write(now, now.without_server(now.backend(look.name), member.name))
            raise
        self._gate(look.name, member.name)

    def _gate(self, backend: str, name: str) -> None:
        """Checks run, no user comes, and old results are forgotten. In this order: before `drain` the last would be
        lost, and a server that is ready must never come here."""
        self._socket.set_server(backend, name, "state drain")
        self._socket.enable_health(backend, name)
        self._socket.set_server(backend, name, "health down")

    def _advance_gate(self, look: _Look, member: Member, server: Server) -> None:
        if not look.gated(member.name) or not server.checked:
            # A drain of another purpose: its results may be stale. The mark in the file comes last.
            self._socket.enable_health(look.name, member.name)
            self._socket.set_server(look.name, member.name, "health down")
            self._write(look, member, disabled=True)
        elif _healthy(server):
            self._socket.set_server(look.name, member.name, "state ready")
        elif server.status == "DRAIN" and server.check_status in _PORT_ONLY:
            raise Refused(
                f"the check of backend {look.name!r} proves only that a port is open ({server.check_status}): give it"
                f" `option httpchk` in {look.config.where}; {member.name} gets no request"
            )

    def _check_first(self, look: _Look, member: Member) -> None:
        """It serves unproven. With another UP it can step back and prove itself; alone it must go on serving."""
        self._socket.enable_health(look.name, member.name)
        if any(one.up for name, one in look.servers.items() if name != member.name):
            self._gate(look.name, member.name)
            self._write(look, member, disabled=True)

    def _restore(self, backend: str, member: Member) -> MemberView:
        look = self._look(backend)
        server, line = look.servers.get(member.name), look.line(member.name)
        if server is None or not server.drain or line is None or line.disabled:
            return self._add(backend, member)
        _same_place(member, server, line, look)
        self._socket.set_server(backend, member.name, "state ready")
        self._file.note(f"{backend}/{member.name}", None)
        return self._after(backend, member.name)

    def _remove(self, backend: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        look = self._look(backend)
        server = look.servers.get(name)
        unknown = "" if cut else _unknown_sessions(look.note(name), look.process)
        if server is None:
            self._forget(look, name)
            if unknown:
                return replace(look.view(name), state="leaving", detail=unknown)
            return self._gone(backend, name)

        never_served = look.gated(name) and not server.ready
        if not never_served:
            _refuse_unless(guard, look, server)
        if server.ready:
            return self._drain(look, name, guard)
        if unknown or (server.drain and not never_served and not cut and not self._idle(server)):
            return replace(look.view(name), detail=unknown or server.words)
        if server.drain:
            self._socket.set_server(backend, name, "state maint")
        if cut:
            self._socket.shutdown_sessions(backend, name)
        self._forget(look, name)
        return self._delete(backend, name)

    def _drain(self, look: _Look, name: str, guard: Guard) -> MemberView:
        note = look.note(name)
        processes = [*note.get("drained_in", ()), look.process.epoch]
        self._file.note(f"{look.name}/{name}", {**note, "drained_in": list(dict.fromkeys(processes))})
        now = self._look(look.name)
        if now.process != look.process or not (server := now.servers.get(name)):
            raise Transient("HAProxy was restarted before the drain", ambiguous=True)
        _refuse_unless(guard, now, server)
        self._socket.set_server(look.name, name, "state drain")
        after = self._look(look.name)
        try:
            _refuse_unless(guard, after, server)
        except GuardRefused:
            # The others fell between the look and the command, or we stood still there: it goes on serving.
            self._socket.set_server(look.name, name, "state ready")
            self._file.note(f"{look.name}/{name}", note or None)
            raise
        return after.view(name)

    def _gone(self, backend: str, name: str) -> MemberView:
        """Absent, and known to be idle: only its options stay noted."""
        key = f"{backend}/{name}"
        note = self._file.notes().get(key, {})
        if "drained_in" in note:
            self._file.note(key, {"options": note["options"]} if "options" in note else None)
        return MemberView(name=name, address="", port=0, state="absent")

    def _forget(self, look: _Look, name: str) -> None:
        """The file no longer has the server; its options are noted, so that it can come back as it was."""
        line = look.line(name)
        if line is None:
            return
        key = f"{look.name}/{name}"
        if not line.disabled:
            try:
                options = look.config.options_like(look.backend, line, name, self._check)
                self._file.note(key, {**self._file.notes().get(key, {}), "options": options})
            except Refused:
                pass  # then it comes back like its neighbours, or is refused with the reason
        self._file.write(look.config, look.config.without_server(look.backend, name))

    def _delete(self, backend: str, name: str) -> MemberView:
        deadline = time.monotonic() + MOMENT_SECONDS
        while True:
            match self._socket.del_server(backend, name):
                case "gone":
                    return self._gone(backend, name)
                case "changed":
                    raise Transient(f"{backend}/{name} left maintenance meanwhile", ambiguous=True)
                case _ if time.monotonic() > deadline:
                    return replace(self._after(backend, name), actionable=False)
            time.sleep(0.01)

    def _after(self, backend: str, name: str) -> MemberView:
        """The view, a moment later if the server has just been made ready."""
        deadline = time.monotonic() + MOMENT_SECONDS
        while True:
            view = self._look(backend).view(name)
            if view.state != "down" or time.monotonic() > deadline:
                return view
            time.sleep(0.01)

    def _options(self, look: _Look, name: str) -> tuple[str, ...]:
        if noted := look.note(name).get("options"):
            return tuple(valid_option(word, f"the note of {name}") for word in noted)
        line = look.line(name) or next(iter(look.backend.servers.values()), None)
        return look.config.options_like(look.backend, line, name, self._check)

    def _write(self, look: _Look, member: Member, *, disabled: bool) -> None:
        where = endpoint(member.address, member.port)
        options = () if look.line(member.name) else self._options(look, member.name)
        text = look.config.with_server(look.backend, member.name, where, options, disabled=disabled)
        self._file.write(look.config, text)


def _view(server: Server, *, gated: bool, leaving: bool) -> MemberView:
    view = MemberView(
        name=server.name,
        address=server.address,
        port=server.port,
        state="down",
        sessions=server.sessions,
        detail=server.words,
    )
    if server.maintenance:
        return replace(view, state="leaving") if leaving else replace(view, state="joining", actionable=True)
    if server.drain:
        if gated:
            return replace(view, state="joining", actionable=_healthy(server) or not server.checked)
        return replace(view, state="draining")
    if server.status == "no check":
        return replace(view, state="joining" if gated else "serving", actionable=True)
    if server.status.startswith("UP"):
        if gated:
            # It serves, but a restart would not know: it has joined once the file says so.
            return replace(view, state="joining", actionable=server.status == "UP")
        return replace(view, state="serving")
    return view


def _unknown_sessions(note: Mapping[str, Any], now: Process) -> str:
    """Why sessions may be left that the present process does not know; empty if there are none."""
    for epoch in note.get("drained_in", ()):
        pid = int(str(epoch).partition(":")[0])
        if epoch == now.epoch or pid == now.pid:
            continue
        alive = same_process(pid, now.pid)
        if alive is None:
            return f"HAProxy was reloaded or restarted during the drain; sessions of its process {pid} are unknown"
        if alive:
            return f"HAProxy was reloaded during the drain; its old process {pid} may still serve sessions"
    return ""


def _healthy(server: Server) -> bool:
    """`DRAIN 1/2` is a remembered or failing result."""
    return server.drain and server.checked and server.status == "DRAIN" and server.check_status in _PROVEN


def _refuse_unless(guard: Guard, look: _Look, leaving: Server) -> None:
    others = {name for name, one in look.servers.items() if one.up and name != leaving.name}
    missing = [name for name in guard.serving if name not in others]
    why = ""
    if missing:
        seen = ", ".join(f"{name} {look.servers[name].words if name in look.servers else 'absent'}" for name in missing)
        why = f"not UP: {seen}"
    elif len(others) < guard.min_healthy:
        why = f"only {len(others)} others are UP, {guard.min_healthy} are needed"
    elif not others and leaving.up:
        why = "it is the last one that is UP"
    if why:
        raise GuardRefused(f"{leaving.name} stays in backend {look.name!r}, now {leaving.status}: {why}")


def _same_place(member: Member, server: Server | None, line: ServerLine | None, look: _Look) -> None:
    for what, found in (("HAProxy", server), (look.config.where, line)):
        if found is None or (found is line and (not _ip(found.address) or not found.port)):
            continue  # a host name in the file: only HAProxy knows where it leads
        if (_ip(found.address), found.port) != (_ip(member.address), member.port):
            raise Conflict(
                f"{what} has {member.name} of backend {look.name!r} at {found.address}:{found.port},"
                f" not at {member.address}:{member.port}"
            )


def _ip(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return ""


def _checked(backend: str, member: Member) -> str:
    valid_name(member.name, "server")
    endpoint(member.address, member.port)
    return backend


def _known() -> str:
    return ", ".join(sorted(_SETTINGS))


def _text(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise Refused(f"traffic settings: {key} must be a text, not {value!r}")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 86400:
        raise Refused(f"traffic settings: quiet must be 0 to 86400 seconds, not {value!r}")
    return float(value)


def _pools(pools: object) -> dict[str, str]:
    if not isinstance(pools, Mapping):
        raise Refused("traffic settings: pools must be a mapping of pool to {backend: NAME}")
    known: dict[str, str] = {}
    for pool, said in pools.items():
        one = said or {}
        if not isinstance(one, Mapping) or set(one) - {"backend", "port"}:
            raise Refused(f"traffic settings: pool {pool!r} must be {{backend: NAME}}")
        known[pool] = valid_name(one.get("backend", pool), f"backend of pool {pool!r}:")
    return known
