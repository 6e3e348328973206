"""`python -m providers.local_host --state DIR`: runs a host in a session of its own."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from providers.errors import Refused
from providers.local_host.daemon import LOG, AlreadyRuns, Options, prepare, serve


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 ended as told, 1 a host already runs there, 64 the folder or an option cannot be used."""
    parser = argparse.ArgumentParser(prog="changeover host", description="The small local cloud.")
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="where its servers and images live")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write 'ready' to this descriptor when it serves")
    parser.add_argument("--network", default="", help="loopback addresses for servers, such as 127.64.0.0/16")
    parser.add_argument("--max-pause", type=float, default=5.0, metavar="S", help="longest stand-still for an image")
    options = parser.parse_args(argv)
    try:
        state = prepare(options.state)
        shell = leave_session()
        logging.basicConfig(
            handlers=[RotatingFileHandler(state / LOG, maxBytes=8 << 20, backupCount=1)],
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(threadName)s: %(message)s",
        )
        serve(
            state,
            Options(network=options.network, max_pause=options.max_pause),
            ready=lambda: tell_ready([options.ready_fd, shell], state),
        )
    except Refused as error:
        print(f"host: {error}", file=sys.stderr)
        return 1 if isinstance(error, AlreadyRuns) else 64
    return 0


def leave_session() -> int | None:
    """A host outlives the terminal and the program that started it. Returns where to say that it serves, if anywhere.

    The leader of a session stays as it is. The leader of a shell's job may not leave its session, so a child of it
    does, and the job ends once that serves, or with its exit code: started from a shell, a host goes to the background.
    """
    if os.getsid(0) == os.getpid():
        return None
    said = None
    if os.getpgrp() == os.getpid():
        heard, said = os.pipe()
        if child := os.fork():
            os.close(said)
            os._exit(0 if os.read(heard, 1) else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os.close(heard)
    os.setsid()
    return said


def tell_ready(fds: list[int | None], state: Path) -> None:
    """From here on its own words go to its log: whoever started it may be gone."""
    for fd in fds:
        if fd is not None:
            os.write(fd, b"ready\n")
            os.close(fd)
    out = os.open(state / LOG, os.O_WRONLY | os.O_APPEND)
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.close(out)
    os.close(empty)


if __name__ == "__main__":
    sys.exit(main())
