"""`python -m tests.checker FOLDER`: one line a violation; ends with 0 without any, 1 with some, 2 without evidence."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.checker.check import check
from tests.checker.evidence import Unusable


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m tests.checker FOLDER", file=sys.stderr)
        return 2
    try:
        found = check(Path(argv[0]))
    except Unusable as error:
        print(f"nothing to judge by: {error}", file=sys.stderr)
        return 2
    for violation in found:
        print(violation)
    print(f"{len(found)} violation{'' if len(found) == 1 else 's'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
