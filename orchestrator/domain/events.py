"""The names of everything that happens: the same in the audit log, in live events and in webhooks that go out.

docs/webhooks.md tells each; a test holds this page, that one and the code together. No name is given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

# Of the rollout as a whole.
ROLLOUT: Mapping[str, str] = {
    "created": "the rollout is there, and none of its servers has begun",
    "approval asked": "the next wave waits for people's yes",
    "approved": "somebody said yes, or the wave needs none any more",
    "not approved": "nobody said it in time, and what the fleet file says of that happens",
    "window closed": "no maintenance window is open",
    "window opened": "one is",
    "baking": "a wave is through, and is watched for a while",
    "promoted": "a person has ended that",
    "next wave": "its servers begin",
    "budget spent": "more servers failed before their swap than are allowed: it is paused",
    "stopped": "a server failed behind its swap: it is paused",
    "paused": "a person or a webhook has paused it",
    "resumed": "a person lets it go on",
    "reopened": "a server that was set aside is tried again",
    "aborting": "a person or a webhook has aborted it: what was begun is undone or finished",
    "aborted": "that is done",
    "rolling back": "a person has it rolled back: every old server comes back",
    "rolled back": "that is done",
    "succeeded": "every server is upgraded",
    "failed": "the waves are through, and some servers were set aside",
    "closed": "nothing more happens to its servers",
    "frozen": "a person has frozen everything: no step begins",
    "unfrozen": "steps begin again",
    "refused": "a token asked in vain for it to be changed: it may not, or things had moved on",
    "alarm": "new servers do not serve as they must, and nobody turns them back by itself",
    "alarm over": "they do again",
}
# Of one server.
SERVER: Mapping[str, str] = {
    "Admitted": "it may begin",
    "Began": "a step is about to do something, with what",
    "UndoBegan": "a step is about to be undone",
    "Waits": "a step waits for something, and for what",
    "Finished": "a step is done",
    "Undone": "a step is undone",
    "Stumbled": "a step could not be done just now, and is tried again",
    "AttemptEnded": "a step was refused, and is tried another way",
    "TurnedBack": "the server goes back to its old one, and why",
    "Held": "a person is asked, and why",
    "Released": "a person lets it go on, or has it tried anew",
    "Settled": "a person has put it right by hand",
    "Doubted": "whether its new server serves is in doubt",
    "Ailed": "its new server does not serve as it must",
    "Recovered": "it does again",
    "Repaired": "a pool was put right",
    "Shifted": "its deadline moved by a pause",
    "Rebuilt": "where it stands was told from the world, since Redis had lost it",
}
# Of what was made, beside any server's way.
BOOKS: Mapping[str, str] = {
    "Mended": "an agenda, counter or lock was not what the records say, and is now",
    "LedgerSettled": "what became of something that was only about to be made is known",
    "Quarantined": "something that nobody accounts for is stopped",
    "OrphanDeleted": "and deleted",
}
EVENTS: Mapping[str, str] = {**ROLLOUT, **SERVER, **BOOKS}
# What goes out unless a receiver says which: how a rollout gets on, and where a person is wanted.
USUAL = frozenset({*ROLLOUT, "TurnedBack", "Held", "Ailed", "Recovered", "Quarantined"}) - {"refused"}
