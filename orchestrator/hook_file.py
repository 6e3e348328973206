"""Reads the files of webhooks, of those that come in and of those that go out, with the secrets and fleet files that
they name; or says what is wrong and where."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from orchestrator import fleet_file, secrets
from orchestrator.domain import signatures
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.hooks import Hook, HookFile, Plain, Rule, Start
from orchestrator.domain.receivers import NotifyFile, Receiver
from orchestrator.errors import BadInput

NEXT = "mend the file; changeover hooks check FILE"
AGAIN = 10.0  # seconds after which one that was wrong is read again, whatever has changed since
_LONGEST = 4096  # bytes of a secret's file

log = structlog.get_logger()
T = TypeVar("T")


class Reread(Generic[T]):
    """What a file says, read anew when it or a secret that it names has changed. While it is wrong then, all of what it
    said before holds, and the log says so. The first reading raises `BadInput`."""

    def __init__(self, read: Callable[[Path], T], path: str | Path, *, names: Callable[[T], Iterable[str]]) -> None:
        """`names`: the files that it names, as seen from its own folder."""
        self._read, self._path, self._names = read, Path(path), names
        self._lock = threading.Lock()
        self._stamps: dict[Path, object] = {self._path: _stamp(self._path)}
        self._found = read(self._path)
        self._wrong, self._tried = "", 0.0

    def __call__(self) -> T:
        with self._lock:
            stamps = {file: _stamp(file) for file in self._files()}
            if stamps != self._stamps or (self._wrong and time.monotonic() >= self._tried + AGAIN):
                self._again(stamps)
            return self._found

    def _again(self, stamps: dict[Path, object]) -> None:
        self._tried = time.monotonic()
        try:
            found = self._read(self._path)
        except BadInput as error:
            if self._wrong != str(error):
                self._wrong = str(error)
                log.warning("file changed", file=str(self._path), kept="what it said before", why=self._wrong)
            self._stamps = stamps
            return
        if found != self._found or self._wrong:
            log.info("file changed", file=str(self._path), kept="what it says now")
        self._found, self._wrong = found, ""
        # One that is named for the first time was not looked at before it was read: it will be, and read once more.
        self._stamps = {file: stamps.get(file) for file in self._files()}

    def _files(self) -> list[Path]:
        return [self._path, *(self._path.parent / name for name in self._names(self._found))]


def _stamp(path: Path) -> object:
    """What tells one version of a file from another."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True, kw_only=True)
class Known:
    """A hook, with the keys that its secrets are."""

    hook: Hook
    keys: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Fleet files are named as seen from `folder`, and read when they are needed: they may have changed. `fleets`: of
    each, the fleet that it describes."""

    folder: Path = Path()
    known: Mapping[str, Known] = field(default_factory=dict)
    fleets: Mapping[str, str] = field(default_factory=dict)

    def about(self, rule: Rule) -> str:
        """The fleet that a rule is for."""
        if rule.start is None:
            return rule.decides.fleet if rule.decides is not None else ""
        return rule.start.fleet or self.fleets[rule.start.fleet_file or ""]

    def fleet_of(self, start: Start, put: Mapping[str, Plain]) -> Fleet:
        """Raises `BadInput`."""
        path = self.folder / (start.fleet_file or "")
        return fleet_file.read(fleet_file.text_of(path), name=path.name, put=put)


@dataclass(frozen=True, kw_only=True)
class KnownReceiver:
    """Somebody who is told, with the keys by which it knows us, and the file of certificates that it is known by."""

    receiver: Receiver
    keys: tuple[bytes, ...] = field(repr=False)
    ca: str = ""

    def headers(self, id: str, body: bytes, *, now: float) -> dict[str, str]:
        """As Standard Webhooks sign, by every key."""
        at = str(int(now))
        return {
            "Content-Type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": at,
            "webhook-signature": " ".join(signatures.standard(id, at, body, key) for key in self.keys),
        }


def fresh_hooks(path: str | Path) -> Reread[Hooks]:
    """Raises `BadInput`, here alone."""
    return Reread(load, path, names=lambda found: [name for each in found.known.values() for name in each.hook.secrets])


def fresh_receivers(path: str | Path) -> Reread[Mapping[str, KnownReceiver]]:
    """Raises `BadInput`, here alone."""
    return Reread(
        receivers, path, names=lambda found: [name for each in found.values() for name in each.receiver.secrets]
    )


def receivers(path: str | Path) -> Mapping[str, KnownReceiver]:
    """Who is told, with their secrets. Raises `BadInput` with the line of what is wrong."""
    path = Path(path)
    text, found = _receivers(path)
    known = {}
    for name, receiver in found.items():
        keys = []
        for n, file in enumerate(receiver.secrets):
            try:
                keys.append(signatures.standard_key(_secret(path.parent / file)))
            except ValueError as error:
                raise _bad(text, path, ("receivers", name, "secrets", n), f"{file} {error}") from None
        ca = str(path.parent / receiver.ca) if receiver.ca else ""
        known[name] = KnownReceiver(receiver=receiver, keys=tuple(keys), ca=ca)
    return known


def named_receivers(path: str | Path) -> Mapping[str, Receiver]:
    """Who is told, for those who have no business with the secrets. Raises `BadInput`."""
    return _receivers(Path(path))[1]


def _receivers(path: Path) -> tuple[str, Mapping[str, Receiver]]:
    text = fleet_file.text_of(path)
    return text, fleet_file.read_as(NotifyFile, text, name=path.name).receivers


def load(path: str | Path) -> Hooks:
    """Raises `BadInput` with the line of what is wrong."""
    path = Path(path)
    text = fleet_file.text_of(path)
    found = fleet_file.read_as(HookFile, text, name=path.name)
    known: dict[str, Known] = {}
    fleets: dict[str, str] = {}
    for name, hook in found.hooks.items():
        within: Sequence[str | int] = ("hooks", name)
        keys = []
        for n, file in enumerate(hook.secrets):
            try:
                keys.append(_key(hook, path.parent / file))
            except ValueError as error:
                raise _bad(text, path, (*within, "secrets", n), f"{file} {error}") from None
        for n, rule in enumerate(hook.rules):
            if rule.start is not None:
                _check(text, path, (*within, "rules", n, "start"), rule.start, fleets)
        known[name] = Known(hook=hook, keys=tuple(keys))
    return Hooks(folder=path.parent, known=known, fleets=fleets)


def _key(hook: Hook, file: Path) -> bytes:
    """Raises ValueError."""
    secret = _secret(file)
    return signatures.standard_key(secret) if hook.scheme == "standard" else signatures.github_key(secret)


def _secret(file: Path) -> str:
    """Raises ValueError."""
    try:
        with file.open("rb") as opened:
            secret = opened.read(_LONGEST).decode().strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    secrets.remember(secret)
    return secret


def _check(text: str, path: Path, at: Sequence[str | int], start: Start, fleets: dict[str, str]) -> None:
    for place in start.set:
        if place in ("fleet", "version") or not fleet_file.knows(place):
            raise _bad(text, path, (*at, "set", place), "there is nothing in a fleet file that could be set there")
    if start.fleet_file is not None and start.fleet_file not in fleets:
        try:
            fleets[start.fleet_file] = fleet_file.load(path.parent / start.fleet_file).fleet
        except BadInput as error:
            raise _bad(text, path, (*at, "fleet_file"), error.message) from None


def _bad(text: str, path: Path, at: Sequence[str | int], what: str) -> BadInput:
    return BadInput(what, place=fleet_file.place_of(text, tuple(at), name=path.name), next=NEXT)
