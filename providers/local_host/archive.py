"""A folder as one compressed file. Unpacking trusts nothing that the archive says about places."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zstandard

from providers.errors import Refused
from providers.local_host import tree

_LEVEL = 3  # 0.2 s for 50 MB; higher levels cost more time than they save disk


def pack(folder: Path, target: Path) -> None:
    """After it returns the archive is on disk. The folder must not change meanwhile."""
    with target.open("xb") as raw:
        with (
            zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).stream_writer(raw, closefd=False) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            tar.add(folder, arcname=".", recursive=False)
            for path, info in tree.walk(folder):
                if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode) or stat.S_ISLNK(info.st_mode):
                    tar.add(folder / path, arcname=path, recursive=False)
        raw.flush()
        os.fsync(raw.fileno())


def unpack(archive: Path, target: Path) -> None:
    """Unpacks into `target`, which must not exist, and puts nothing anywhere else.

    `Refused` for a member whose path leaves the folder, also by way of a link, or that is not a file, folder or link;
    for a damaged archive too. The target is then incomplete.
    """
    target.mkdir(mode=0o700)
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    folders: list[tuple[str, tarfile.TarInfo]] = []
    try:
        with (
            archive.open("rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw) as plain,
            tarfile.open(fileobj=plain, mode="r|") as tar,
        ):
            for member in tar:
                if member.isdir():
                    folders.append((member.name, member))
                _place(tar, member, top)
        for name, member in reversed(folders):
            with _parent(top, name) as (parent, last):
                _dress(parent, last, member)
    except (tarfile.TarError, zstandard.ZstdError, EOFError, OSError) as error:
        raise Refused(f"{archive.name} cannot be unpacked: {error}") from error
    finally:
        os.close(top)


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, top: int) -> None:
    with _parent(top, member.name) as (parent, last):
        if member.isdir():
            if last != ".":
                os.mkdir(last, 0o700, dir_fd=parent)
        elif member.issym():
            os.symlink(member.linkname, last, dir_fd=parent)
            _dress(parent, last, member)
        elif member.islnk():
            with _parent(top, member.linkname) as (other, name):
                os.link(name, last, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        elif member.isreg():
            _write(tar, member, parent, last)
            _dress(parent, last, member)
        else:
            raise Refused(f"{member.name!r} in the image is neither file, folder nor link")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, last: str) -> None:
    content = tar.extractfile(member)
    assert content is not None  # tarfile's word for "not a regular file", which was asked before
    fd = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
    with os.fdopen(fd, "wb") as file:
        while chunk := content.read(1 << 20):
            file.write(chunk)


@contextmanager
def _parent(top: int, name: str) -> Iterator[tuple[int, str]]:
    """The opened folder of a member and its last name, reached without following any link."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise Refused(f"{name!r} in the image leaves its folder")
    with ExitStack() as opened:
        here = top
        for part in parts[:-1]:
            here = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            opened.callback(os.close, here)
        yield here, parts[-1] if parts else "."


def _dress(parent: int, last: str, member: tarfile.TarInfo) -> None:
    if os.geteuid() == 0:
        os.chown(last, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    if not member.issym():
        os.chmod(last, stat.S_IMODE(member.mode), dir_fd=parent)
    when = int(member.mtime * 1_000_000) * 1000
    os.utime(last, ns=(when, when), dir_fd=parent, follow_symlinks=False)
