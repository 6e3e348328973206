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

_TIME = "CHANGEOVER.mtime"  # nanoseconds: tarfile keeps a float, which is too short for today's times
_PIECE = 1 << 20
_LEVEL = 3  # 0.2 s for 50 MB; higher levels cost more time than they save disk


def collect(folder: Path, target: Path) -> None:
    """Writes the folder into one plain file. The folder must not change meanwhile, so its server stands still: one file
    is written and none made, which on a busy disk is many times faster than a copy. Sockets, pipes and devices are
    left out."""
    linked: dict[tuple[int, int], str] = {}
    with (
        target.open("xb") as raw,
        tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.addfile(_member(".", folder.stat()))
        for path, info in tree.walk(folder):
            member, here = _member(path, info), f"{folder}/{path}"
            first = linked.setdefault((info.st_dev, info.st_ino), path) if info.st_nlink > 1 else path
            if first != path and not member.isdir():
                member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0
                tar.addfile(member)
            elif member.isreg():
                with open(here, "rb") as file:  # noqa: PTH123  a text path, since this is done once a file
                    tar.addfile(member, file)
            elif member.issym():
                member.linkname = os.readlink(here)  # noqa: PTH115  as above
                tar.addfile(member)
            elif member.isdir():
                tar.addfile(member)


def _member(name: str, info: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    kinds = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
    member.type = kinds.get(stat.S_IFMT(info.st_mode), tarfile.FIFOTYPE)
    member.size = info.st_size if member.isreg() else 0
    member.mode, member.uid, member.gid = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
    member.mtime = info.st_mtime_ns // 1_000_000_000
    member.pax_headers = {_TIME: str(info.st_mtime_ns)}
    return member


def compress(source: Path, target: Path) -> None:
    """After it returns the archive is on disk, compressed."""
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with source.open("rb") as plain, target.open("xb") as raw:
        packer.copy_stream(plain, raw, size=source.stat().st_size, read_size=_PIECE, write_size=_PIECE)
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
    when = int(member.pax_headers.get(_TIME) or member.mtime * 1_000_000_000)
    os.utime(last, ns=(when, when), dir_fd=parent, follow_symlinks=False)
