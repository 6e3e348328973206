"""What people and programs can ask of Changeover: the command line, the API, the page and the hooks all ask here.

Each verb takes what it works on, returns values and prints nothing. Asking twice is the same as asking once: a verb
that finds its work done says so with `changed=False`. None of them touches the world: they change the record, and
workers and coordinators follow it.
"""

from orchestrator.operations.asking import Asker, Waiter, await_survey, celery_asker, request_survey
from orchestrator.operations.checking import Check, doctor, needed_rights
from orchestrator.operations.control import (
    TRIES,
    Answer,
    abort,
    approve,
    confirmed,
    pause,
    promote,
    resume,
    retry,
    rollback,
    rollback_server,
    seen_of,
)
from orchestrator.operations.freezing import Frozen, freeze, unfreeze
from orchestrator.operations.leftovers import Inventory, gc
from orchestrator.operations.looking import LOST, Story, View, events, explain, find, listed, report, view
from orchestrator.operations.planning import apply, create, moved, plan, refuse_blockers, saved_plan
from orchestrator.operations.rebuilding import rebuild
from orchestrator.operations.settling import settle

__all__ = [
    "LOST",
    "TRIES",
    "Answer",
    "Asker",
    "Check",
    "Frozen",
    "Inventory",
    "Story",
    "View",
    "Waiter",
    "abort",
    "apply",
    "approve",
    "await_survey",
    "celery_asker",
    "confirmed",
    "create",
    "doctor",
    "events",
    "explain",
    "find",
    "freeze",
    "gc",
    "listed",
    "moved",
    "needed_rights",
    "pause",
    "plan",
    "promote",
    "rebuild",
    "refuse_blockers",
    "report",
    "request_survey",
    "resume",
    "retry",
    "rollback",
    "rollback_server",
    "saved_plan",
    "seen_of",
    "settle",
    "unfreeze",
    "view",
]
