"""Becomes a server's process: sets its limits and folder, then runs its command. Run by path, imports nothing of ours.

    python -I -S launch.py '{"command": [...], "cwd": "...", "data": BYTES, "fsize": BYTES}'

Limits are set here, in the process that becomes the server, since code between fork and exec of a program with threads
may deadlock. File descriptor 3 tells the parent: closed without a word, the command runs; otherwise why it does not.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

REPORT = 3


def main() -> None:
    os.set_inheritable(REPORT, False)
    spec = json.loads(sys.argv[1])
    try:
        os.umask(0o022)
        os.chdir(spec["cwd"])
        # Python ignores these two, and what is ignored stays ignored in the program that follows.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if spec["fsize"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (spec["fsize"], spec["fsize"]))
        if spec["data"]:
            resource.setrlimit(resource.RLIMIT_DATA, (spec["data"], spec["data"]))
        os.execvp(spec["command"][0], spec["command"])  # noqa: S606  a shell is what nobody wants here
    except (OSError, ValueError, MemoryError) as error:
        os.write(REPORT, f"cannot run {spec['command'][0]!r}: {error}".encode(errors="replace"))
        os._exit(127)


main()
