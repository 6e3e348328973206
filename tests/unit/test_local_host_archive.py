"""Unpacking puts nothing outside, whatever an archive says."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import zstandard

from providers.errors import Refused
from providers.local_host import archive


def packed(target: Path, *members: tarfile.TarInfo) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    target.write_bytes(zstandard.compress(plain.getvalue()))
    return target


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o644
    info.size = 1 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../out")],
        [member("/out")],
        [member("a/../../out")],
        [member("way", tarfile.SYMTYPE, ".."), member("way/out")],
        [member("way", tarfile.SYMTYPE, "/tmp"), member("way/out")],
        [member("out", tarfile.SYMTYPE, "../secret"), member("out")],
        [member("hard", tarfile.LNKTYPE, "../secret")],
        [member("way", tarfile.SYMTYPE, ".."), member("hard", tarfile.LNKTYPE, "way/secret")],
        [member("device", tarfile.CHRTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("twice"), member("twice")],
    ],
    ids=lambda members: " ".join(one.name for one in members),
)
def test_a_member_that_leads_outside_is_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    (tmp_path / "secret").write_text("s")
    source = packed(tmp_path / "evil.tar.zst", *members)
    with pytest.raises(Refused):
        archive.unpack(source, tmp_path / "root")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar.zst", "root", "secret"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(bytes(range(256)) * 4000)
    source = tmp_path / "image.tar.zst"
    archive.collect(tmp_path / "tree", tmp_path / "plain")
    archive.compress(tmp_path / "plain", source)
    raw = bytearray(source.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 0xFF
    kinds = {"cut": bytes(raw[: len(raw) // 2]), "flipped": bytes(raw), "foreign": b"PK\x03\x04 no image"}
    source.write_bytes(kinds[damage])
    with pytest.raises(Refused, match=r"image\.tar\.zst cannot be unpacked"):
        archive.unpack(source, tmp_path / "root")
