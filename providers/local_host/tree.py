"""Copying and measuring folders. A symbolic link is a thing of its own here: it is copied, never followed."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 4096


class TooSlow(Exception):
    """A copy was not done by its deadline."""


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below root, relative to it, a folder before its content. What vanishes meanwhile is left out."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            names = sorted(entry.name for entry in os.scandir(root / folder))
        except FileNotFoundError:
            continue
        for name in names:
            path = f"{folder}/{name}" if folder else name
            try:
                info = os.lstat(root / path)
            except FileNotFoundError:
                continue
            yield path, info
            if stat.S_ISDIR(info.st_mode):
                pending.append(path)


def usage(root: Path) -> int:
    """Bytes that the folder needs on a disk with blocks of 4 KiB; a file with several names counts once."""
    total, seen = 0, set()
    for _, info in walk(root):
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
        total += max(1, -(-info.st_size // _BLOCK)) * _BLOCK if stat.S_ISREG(info.st_mode) else _BLOCK
    return total


def copy(source: Path, target: Path, *, deadline: float | None = None) -> None:
    """Copies a folder with its permissions, times, links and, as root, owners. Sockets, pipes and devices are left out.

    `target` must not exist. Raises `TooSlow` when the deadline (of `time.monotonic`) has passed; the target is then
    incomplete.
    """
    top = source.stat()
    target.mkdir(mode=0o700)
    linked: dict[tuple[int, int], Path] = {}
    folders: list[tuple[Path, os.stat_result]] = [(target, top)]
    for path, info in walk(source):
        if deadline is not None and time.monotonic() > deadline:
            raise TooSlow
        here, there = source / path, target / path
        if stat.S_ISDIR(info.st_mode):
            there.mkdir(mode=0o700)
            folders.append((there, info))
            continue
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
            continue
        inode = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and inode in linked:
            os.link(linked[inode], there, follow_symlinks=False)
            continue
        try:
            _copy_one(here, there, info, deadline)
        except FileNotFoundError:
            continue
        if info.st_nlink > 1:
            linked[inode] = there
        dress(there, info)
    for folder, info in reversed(folders):
        dress(folder, info)


def _copy_one(source: Path, target: Path, info: os.stat_result, deadline: float | None) -> None:
    if stat.S_ISLNK(info.st_mode):
        target.symlink_to(source.readlink())
        return
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            # In pieces, so that one large file does not outlast the deadline; shares blocks where the disk can.
            while os.copy_file_range(reading, writing, 64 << 20):
                if deadline is not None and time.monotonic() > deadline:
                    raise TooSlow
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def dress(path: Path, info: os.stat_result) -> None:
    """Owner, permissions and times as in info."""
    if os.geteuid() == 0:
        os.chown(path, info.st_uid, info.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        path.chmod(stat.S_IMODE(info.st_mode))  # after chown, which clears the set-id bits
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
