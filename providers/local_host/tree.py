"""Copying and measuring folders. A symbolic link is a thing of its own here: it is copied, never followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 4096
_AT_ONCE = 1 << 20


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below root, relative to it, a folder before its content. What vanishes meanwhile is left out."""
    top = str(root)
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(f"{top}/{folder}"), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                info = entry.stat(follow_symlinks=False)
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


def copy(source: Path, target: Path) -> None:
    """Copies a folder with its permissions, times, links and, as root, owners. Sockets, pipes and devices are left out.

    `target` must not exist. Text paths and open files, not `Path` and `shutil`: there may be many thousand files.
    """
    top = source.stat()
    target.mkdir(mode=0o700)
    linked: dict[tuple[int, int], str] = {}
    folders = [(str(target), top)]
    for path, info in walk(source):
        here, there = f"{source}/{path}", f"{target}/{path}"
        if stat.S_ISDIR(info.st_mode):
            os.mkdir(there, 0o700)  # noqa: PTH102  see above
            folders.append((there, info))
            continue
        inode = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and inode in linked:
            os.link(linked[inode], there, follow_symlinks=False)
            continue
        try:
            if stat.S_ISREG(info.st_mode):
                _copy_file(here, there, info)
            elif stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(here), there)  # noqa: PTH115, PTH211  see above
                _dress(there, info)
            else:
                continue
        except FileNotFoundError:
            continue
        if info.st_nlink > 1:
            linked[inode] = there
    for folder, info in reversed(folders):
        _dress(folder, info)


def _copy_file(source: str, target: str, info: os.stat_result) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if info.st_size > _AT_ONCE:
                while os.copy_file_range(reading, writing, 1 << 30):  # shares blocks where the disk can
                    pass
            else:
                while content := os.read(reading, _AT_ONCE):
                    while content:
                        content = content[os.write(writing, content) :]
            _dress(writing, info)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _dress(what: str | int, info: os.stat_result) -> None:
    """Owner, permissions and times as in info; of a path or, without another look for it, of an open file."""
    follow = isinstance(what, int)
    if os.geteuid() == 0:
        os.chown(what, info.st_uid, info.st_gid, follow_symlinks=follow)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(what, stat.S_IMODE(info.st_mode))  # noqa: PTH101  may be an open file; after chown, which clears set-id
    os.utime(what, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=follow)
