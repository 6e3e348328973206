"""Stop all new effects at once, and let them begin again."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.operations.control import confirmed
from orchestrator.store import Store


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """`why` is None when not frozen; `in_flight` counts servers under way in all rollouts. `confirmed`: see there."""

    why: str | None
    changed: bool
    in_flight: int
    confirmed: bool | None = None


def freeze(store: Store, *, actor: str, reason: str = "") -> Frozen:
    """From its return on no step of any rollout begins, forward or back."""
    before = store.frozen()
    if before is None:
        store.freeze(True, actor=actor, reason=reason)
    return _frozen(store, changed=before is None)


def unfreeze(store: Store, *, actor: str) -> Frozen:
    before = store.frozen()
    if before is not None:
        store.freeze(False, actor=actor)
        store.wake()
    return _frozen(store, changed=before is not None)


def _frozen(store: Store, *, changed: bool) -> Frozen:
    return Frozen(why=store.frozen(), changed=changed, in_flight=_flying(store), confirmed=confirmed(store))


def _flying(store: Store) -> int:
    tallies = (store.tally(rollout.id).by_state for rollout in store.open_rollouts())
    return sum(states.get("running", 0) + states.get("waiting", 0) for states in tallies)
