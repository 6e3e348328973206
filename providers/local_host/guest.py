"""What a look inside a server finds: from its real process and folder, read-only, and from nowhere else.

`memory_total` is the limit of the data segment read back from /proc/PID/limits. `memory_used` is the largest VmData
of the server's processes, which is what that limit counts: the limit holds for each process, not for their sum.
`disk_total` is a budget: it is checked, and only the size of one file is limited by the kernel.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from providers.local_host import processes, tree
from providers.local_host.processes import Proc
from providers.local_host.records import ServerRecord

_LINKS = 40  # as many as Linux follows


def facts(
    record: ServerRecord,
    root: Path,
    proc: Proc,
    *,
    pids: Sequence[int],
    paths: Sequence[str],
    listening: Mapping[int, int],
) -> dict[str, Any] | None:
    """`pids` are all that run of this boot, `listening` the open connections by port. None if the server
    does not run (any more)."""
    limits = _limits(proc.pid)
    status = {pid: _status(pid) for pid in {proc.pid, *pids}}
    used = tree.usage(root)
    found = [look(root, path) for path in paths]
    if limits is None or not processes.alive(proc):
        return None
    return {
        "server": record.id,
        "boot": record.boot,
        "disk_total": record.size.disk,
        "disk_used": used,
        "memory_total": limits,
        "memory_used": max(values.get("VmData", 0) for values in status.values()),
        "paths": found,
        "listening": list(listening),
        "connections": {str(port): count for port, count in listening.items()},
        "clock": time.time(),
        "extra": {
            "pid": str(proc.pid),
            "processes": str(len(status)),
            "resident": str(sum(values.get("VmRSS", 0) for values in status.values())),
        },
    }


def _limits(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/limits").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    line = next(line for line in text.splitlines() if line.startswith("Max data size"))
    soft = line.split()[3]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if soft == "unlimited" else int(soft)


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.partition(":") for line in lines if line.startswith(("VmData", "VmRSS")))
    return {name: int(value.split()[0]) * 1024 for name, _, value in pairs}


def look(root: Path, path: str) -> dict[str, str]:
    """The path as it is inside the server; missing if it, or a link on its way, leads out of the folder.

    Every step is taken from an opened folder and follows no link by itself, so that nothing that the server changes
    meanwhile leads outside.
    """
    missing = {"path": path, "kind": "missing"}
    opened = [os.open(root, os.O_PATH | os.O_DIRECTORY)]
    try:
        info = _resolve(opened, path)
    except OSError:
        return missing
    finally:
        for fd in opened:
            os.close(fd)
    if info is None:
        return missing
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return {
        "path": path,
        "kind": kinds.get(stat.S_IFMT(info.st_mode), "other"),
        "mode": f"{stat.S_IMODE(info.st_mode):04o}",
        "owner": _user(info.st_uid),
        "group": _group(info.st_gid),
    }


def _resolve(opened: list[int], path: str) -> os.stat_result | None:
    """`opened` is the folders from the root to here, each one open. None if the way leads out."""
    if "\0" in path:
        return None
    todo, links = [part for part in path.split("/") if part not in ("", ".")], 0
    while todo:
        part = todo.pop(0)
        if part == "..":
            if len(opened) == 1:
                return None
            os.close(opened.pop())
            continue
        info = os.stat(part, dir_fd=opened[-1], follow_symlinks=False)
        if not todo and not path.endswith("/"):
            return info
        if stat.S_ISLNK(info.st_mode):
            links += 1
            aim = os.readlink(part, dir_fd=opened[-1])
            if links > _LINKS or aim.startswith("/"):
                return None
            todo = [step for step in aim.split("/") if step not in ("", ".")] + todo
            continue
        opened.append(os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
    return os.fstat(opened[-1])


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
