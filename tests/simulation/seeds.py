"""Seeds that have found something, kept with what it was. A change of what is drawn makes a seed another story: its
regression test is then the one beside the code."""

from __future__ import annotations

from typing import Final

KEPT: Final[dict[int, str]] = {
    22: "a step took an absent Redis for a failure of its server, and turned it back",
    88: "an old server was ended before its time, by a message that came twice",
    21: "an image that was made long after it had been undone was nobody's",
}
