"""What the host keeps on disk: one JSON file a thing, replaced atomically, so that a crash loses one call at most."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from providers.compute import ImageState, ServerState, Size

Want = Literal["running", "stopped", "terminated"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a server runs, and what a server made from it runs too. `grace` in seconds is how long a stop may take."""

    command: tuple[str, ...]
    port: int
    env: Mapping[str, str] = field(default_factory=dict)
    grace: float = 10.0


@dataclass(frozen=True, kw_only=True)
class ServerRecord:
    """A server. `want` is what was asked for, `state` what is. `filled` says that its folder is complete.

    `pid` and `started` (clock ticks since the machine's boot) together name the process for certain.
    A terminated record is a tombstone: its token is used up.
    """

    id: str
    name: str
    address: str
    program: Program
    size: Size
    tags: Mapping[str, str]
    token: str = ""
    image: str = ""
    like: str = ""
    files_from: str = ""
    want: Want = "running"
    state: ServerState = "pending"
    reason: str = ""
    boot: str = ""
    launched: float = 0.0
    protected: bool = False
    filled: bool = False
    pid: int = 0
    started: int = 0
    ended: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image. `pause` is how long its server stood still for it, in seconds; `taken`: that is over. A deleted record
    is a tombstone."""

    id: str
    name: str
    token: str
    source: str
    tags: Mapping[str, str]
    state: ImageState | Literal["deleted"] = "pending"
    disk: int = 0
    stored: int = 0
    pause: float = 0.0
    taken: bool = False
    reason: str = ""
    ended: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BalancerRecord:
    """An HAProxy that is to run from `config`."""

    name: str
    config: str
    runtime: str
    boot: str = ""
    pid: int = 0
    started: int = 0
    restarts: int = 0
    reason: str = ""


def server_from(data: dict[str, Any]) -> ServerRecord:
    program = data.pop("program")
    program["command"] = tuple(program["command"])
    return ServerRecord(program=Program(**program), size=Size(**data.pop("size")), **data)


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def write(path: Path, record: ServerRecord | ImageRecord | BalancerRecord) -> None:
    """After it returns the record is on disk, whole; a crash before that leaves the former one."""
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(dataclasses.asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
