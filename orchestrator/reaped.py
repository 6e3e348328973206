"""Becomes a program that does not outlive who started it: `reaped.py SIGNAL PARENT FOLDER -- COMMAND...`.

The kernel sends SIGNAL when the thread that started this process ends. That request survives exec, not fork. A parent
that died before the request was made is noticed by its number.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
PARENT_IS_GONE = 75
NOT_STARTED = 127


def main(argv: list[str]) -> int:
    signal, parent, folder, separator, *command = argv
    assert separator == "--"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal), 0, 0, 0) != 0:
        print(f"prctl: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return NOT_STARTED
    if os.getppid() != int(parent):
        return PARENT_IS_GONE
    os.umask(0o077)  # what the control plane writes is its owner's alone
    try:
        os.chdir(folder)
        os.execvp(command[0], command)  # noqa: S606  # becoming that command is what this program is for
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
    return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
