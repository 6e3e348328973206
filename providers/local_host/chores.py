"""Heavy work on folders, done by a process of its own, so that the host answers meanwhile and a pause is short.

    python -P -m providers.local_host.chores snapshot|fill '{...}'

It answers with JSON lines on its output. Its input is a line to the host: when that closes, the host is gone or
does not want the work any more, and it ends at once. Whatever stood still runs on before it ends, in every case.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from providers.errors import Refused, Transient
from providers.local_host import archive, tree
from providers.local_host.processes import HOST_MARK

_STILL = "tTZXx"


class Chore:
    """The host's end of one such process. Leaving the block ends it, done or not."""

    def __init__(self, host: Path, what: str, **given: Any) -> None:
        package = Path(__file__).parents[2]
        self._process = subprocess.Popen(  # noqa: S603  our own program, no shell
            [sys.executable, "-P", "-B", "-m", __name__, what, json.dumps(given)],
            env={**os.environ, "PYTHONPATH": str(package), HOST_MARK: str(host)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Chore:
        return self

    def answer(self) -> dict[str, Any]:
        """Its next answer. `Refused` with the reason why it could not, `Transient` if it ended without a word."""
        assert self._process.stdout is not None  # asked for above
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise Transient("the process that worked on the folder ended without an answer", ambiguous=False)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None  # asked for above
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def fill(*, image: str, folder: str, target: str) -> None:
    """`target` is unpacked from an image, or else copied from a folder; says how much disk it needs."""
    if image:
        archive.unpack(Path(image), Path(target))
    else:
        tree.copy(Path(folder), Path(target))
    say(disk=tree.usage(Path(target)))


def snapshot(*, root: str, pids: list[int], staging: str, packed: str, seconds: float) -> None:
    """The folder as it is at one moment, in one file, which is compressed when its processes run on.

    Says first for how many seconds they stood still, then how much disk the folder needs.
    """
    staged = Path(staging)
    begun = time.monotonic()
    with standing_still(pids, seconds=seconds):
        disk = tree.usage(Path(root))
        archive.collect(Path(root), staged)
    say(pause=time.monotonic() - begun if pids else 0.0)
    os.nice(10)  # compressing may wait, users may not
    archive.compress(staged, Path(packed))
    say(disk=disk)


_paused: list[int] = []  # whose threads stand still now; the watches below must let them run on


@contextlib.contextmanager
def standing_still(pids: Sequence[int], *, seconds: float) -> Iterator[None]:
    """No thread of the group of the first pid, nor of the others, runs inside the block.

    When the seconds are over before the block is, they run on and this process ends, saying so.
    """
    if not pids:
        yield
        return
    late = threading.Timer(seconds, run_on, (f"its processes stood still for {seconds:g} s, which did not suffice",))
    late.start()
    try:
        _paused.extend(pids)
        tell(pids, signal.SIGSTOP)
        everybody = members(pids)
        while not all(map(still, everybody)):
            time.sleep(0.0005)
        yield
    finally:
        tell(pids, signal.SIGCONT)
        _paused.clear()
        late.cancel()


def run_on(why: str) -> None:
    """Whatever stands still runs on, and this process is over, wherever it is."""
    if _paused:
        tell(_paused, signal.SIGCONT)
    if why:
        say(error=why)
    os._exit(1)


def watch_host() -> None:
    """Ends this process when its input closes: nobody wants the work any more."""
    os.read(0, 1)
    run_on("")


def tell(pids: Sequence[int], sig: signal.Signals) -> None:
    """To the group of the first, and to each of the others."""
    group, *others = pids
    for send, target in [(os.killpg, group), *((os.kill, pid) for pid in others)]:
        with contextlib.suppress(ProcessLookupError):
            send(target, sig)


def members(pids: Sequence[int]) -> list[int]:
    group, *found = pids
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
    return found


def still(pid: int) -> bool:
    # One that ended meanwhile writes nothing any more, which is as good.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            if Path(thread.path, "stat").read_text().rpartition(")")[2].split()[0] not in _STILL:
                return False
    return True


def say(**answer: Any) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


CHORES: dict[str, Callable[..., None]] = {"fill": fill, "snapshot": snapshot}


def main(what: str, given: str) -> int:
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, lambda *_: run_on(""))
    threading.Thread(target=watch_host, daemon=True).start()
    try:
        CHORES[what](**json.loads(given))
    except (Refused, OSError) as error:
        say(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
