"""Idempotency-Key: what is asked for twice under one key is done once, also by two processes of the API at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from orchestrator.api.callers import Caller
from orchestrator.api.problems import Problem
from orchestrator.errors import BadInput, Conflict
from orchestrator.store import Store

KEPT = 86400.0  # seconds for which a key stands for its request
WORKING = 120.0  # seconds that one request may take: longer than a worker is waited for
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def once(
    store: Store, who: Caller, key: str | None, asked: bytes, id: str, act: Callable[[str], str]
) -> tuple[str, bool]:
    """The id of what `act` has made, and whether it had been made before. `act` is given an id for it, the same one
    whenever the same is tried again, and returns the one that it has.

    Raises `Problem` for a key that stands for another request, or for one that is being worked on at this moment.
    """
    if key is None:
        return act(id), False
    if not _KEY.fullmatch(key):
        raise Problem("malformed", "Idempotency-Key takes 1 to 255 visible ASCII characters")
    mine = hashlib.sha256(f"{who.token.id}:{key}".encode()).hexdigest()
    known = store.once(mine, asked=hashlib.sha256(asked).hexdigest(), id=id, seconds=WORKING, ttl=KEPT)
    match known.state:
        case "other":
            told = f"this Idempotency-Key stands for another request, which was made within {KEPT / 3600:g} h"
            raise Problem("key-reused", told, next="take a new key for a new request")
        case "busy":
            raise Problem("in-progress", "the same request is being worked on", next="send it again in a moment")
        case "done":
            return known.id, True
    try:
        made = act(known.id)
    except (BadInput, Conflict, Problem):  # refused, and nothing made: the key may be used for what is mended
        store.once_ended(mine, how="forgotten")
        raise
    except Exception:  # it may have been made: only the same may be tried again, under the same id
        store.once_ended(mine, how="again")
        raise
    store.once_ended(mine, how="done", id=made)
    return made, False
