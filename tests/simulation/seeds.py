"""Seeds that have found something, kept with what it was. Since then the draws have changed (where one may die, how
long everybody sleeps), and with any such change a seed becomes another story: these are played as any other, and what
finds the same again is the test beside the code, named here. What a seed finds now is kept until the next change."""

from __future__ import annotations

from typing import Final

KEPT: Final[dict[int, str]] = {
    # test_a_store_that_does_not_answer_turns_no_server_back
    22: "a step took an absent Redis for a failure of its server, and turned it back",
    # test_every_message_may_come_twice
    88: "an old server was ended before its time, by a message that came twice",
    # test_what_is_made_after_the_undo_has_looked_is_undone_too
    21: "an image that was made long after it had been undone was nobody's",
}
