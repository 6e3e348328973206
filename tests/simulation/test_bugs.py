"""A simulation that finds nothing may be blind. Here the product gets a bug, and a few seeds must see it.

Each is switched on by a patch of a test; none is in the product."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from orchestrator.domain.rollout import Rollout
from orchestrator.errors import Fenced
from orchestrator.store import Row
from orchestrator.store.memory import MemoryStore
from providers import Key
from providers.traffic import Guard
from providers.traffic.fake import FakeTraffic
from tasks import cleaning, drain_old, keys, membership, smoke_test, step, swap
from tasks.step import Done, Wait
from tasks.world import Turn
from tests.simulation.simulation import Failed, simulate

SEEDS = 60
Bug = Callable[[], AbstractContextManager[Any]]


def _a_random_token() -> AbstractContextManager[Any]:
    count, made = itertools.count(), keys.key

    def key(*args: Any, **kwargs: Any) -> Key:
        found = made(*args, **kwargs)
        return replace(found, token=f"{next(count):064x}")

    return patch.object(keys, "key", key)


def _no_intent() -> AbstractContextManager[Any]:
    """The effect comes first, and is written down with its result."""

    def intent(self: MemoryStore, claim: Any, to: Any, **_how: Any) -> Any:
        return replace(claim, row=replace(claim.row, upgrade=to))

    return patch.object(MemoryStore, "intent", intent)


def _no_guard() -> AbstractContextManager[Any]:
    return patch.object(FakeTraffic, "_check", lambda *_: None)


def _commit_by_anybody() -> AbstractContextManager[Any]:
    def held(self: MemoryStore, claim: Any) -> Any:
        record = self._record(claim.rollout, claim.server)
        if record is None:
            raise Fenced("gone")
        return record

    return patch.object(MemoryStore, "_held", held)


def _one_pass_is_enough() -> AbstractContextManager[Any]:
    """The last smoke test decides, whatever was before it."""
    test = smoke_test.do

    def do(turn: Turn, intent: Any) -> Done | Wait:
        answer = test(turn, intent)
        if isinstance(answer, Wait) and not answer.notes.get("last", "none"):
            return Done(result={"passes": 1, "rounds": 1, "at": turn.now, **intent.params})
        return answer

    return patch.object(smoke_test, "do", do)


def _a_smoke_test_that_always_passes() -> AbstractContextManager[Any]:
    return patch.object(smoke_test, "one_round", lambda *_: ("", {}))


def _undo_only_what_is_finished() -> AbstractContextManager[Any]:
    def made(turn: Turn, _kind: Any, *, step: str, field: str, but: str) -> Mapping[str, str]:
        id = turn.upgrade.results.get(step, {}).get(field)
        return {id: ""} if id and id != but else {}

    return patch.object(cleaning, "_made", made)


def _out_before_in() -> AbstractContextManager[Any]:
    brought = swap.do

    def do(turn: Turn, intent: Any) -> Done | Wait:
        for pool, name in membership.names(membership.old_members(turn.server.seats)):
            turn.traffic.remove(pool, name, guard=Guard(min_healthy=0), cut=False)
        return brought(turn, intent)

    return patch.object(swap, "do", do)


def _stopped_before_it_has_left() -> AbstractContextManager[Any]:
    drained = drain_old.do

    def do(turn: Turn, intent: Any) -> Done | Wait:
        turn.compute.stop(intent.params["server"])
        return drained(turn, intent)

    return patch.object(drain_old, "do", do)


def _no_soak() -> AbstractContextManager[Any]:
    return patch.object(swap, "_soak", lambda *_: Done(result={}))


def _begins_though_paused() -> AbstractContextManager[Any]:
    return patch.object(MemoryStore, "_refusal", lambda *_, **__: None)


def _ends_old_servers_early() -> AbstractContextManager[Any]:
    due_of = step.due_of

    def due(to: Any, **more: Any) -> float | None:
        found = due_of(to, **more)
        return found - 20.0 if found is not None and to.state == "upgraded" else found

    return patch.multiple(step, due_of=due, _too_early=lambda _turn: None)


def _nobody_looks_after_what_was_sent() -> AbstractContextManager[Any]:
    """What is lost on its way is not sent again."""
    issue = MemoryStore.issue

    def once(self: MemoryStore, rollout: str, server: str, **more: Any) -> int | None:
        epoch = issue(self, rollout, server, **more)
        if epoch is not None:
            self._due[rollout, server] = 1e12
        return epoch

    return patch.object(MemoryStore, "issue", once)


def _a_record_loses_its_agenda() -> AbstractContextManager[Any]:
    """A lease that ends is nobody's business."""
    renew = MemoryStore.renew

    def renewed(self: MemoryStore, claim: Any, **more: Any) -> Any:
        found = renew(self, claim, **more)
        self._due[claim.rollout, claim.server] = 1e12
        return found

    return patch.object(MemoryStore, "renew", renewed)


def _a_change_that_nobody_compares() -> AbstractContextManager[Any]:
    turn = MemoryStore.turn

    def turned(self: MemoryStore, row: Row, to: Any, **more: Any) -> Row | None:
        record = self._record(to.rollout, to.server)
        return turn(self, replace(row, version=record.version) if record else row, to, **more)

    return patch.object(MemoryStore, "turn", turned)


BUGS: Mapping[str, tuple[Bug, tuple[str, ...]]] = {
    "a random token": (_a_random_token, ("I4", "I6")),
    "no intent": (_no_intent, ("I6",)),
    "no guard": (_no_guard, ("I1", "I7")),
    "commit by anybody": (_commit_by_anybody, ("I3", "I6", "unexpected", "I4")),
    "the last smoke test wins": (_one_pass_is_enough, ("I2",)),
    "a smoke test that always passes": (_a_smoke_test_that_always_passes, ("I2",)),
    "undo only what is finished": (_undo_only_what_is_finished, ("I4",)),
    "out before in": (_out_before_in, ("I1",)),
    "stopped before it has left": (_stopped_before_it_has_left, ("I7",)),
    "no soak": (_no_soak, ("I7",)),
    "begins though paused": (_begins_though_paused, ("pause", "freeze")),
    "ends old servers early": (_ends_old_servers_early, ("I7", "unexpected")),
    "nobody looks after what was sent": (_nobody_looks_after_what_was_sent, ("liveness",)),
    "a record loses its agenda": (_a_record_loses_its_agenda, ("liveness",)),
    "a change that nobody compares": (_a_change_that_nobody_compares, ("I3", "I6")),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_seen(name: str) -> None:
    bug, by = BUGS[name]
    assert any(str(why).startswith(by) for why in seen(bug)), f"{SEEDS} seeds have not seen it"


def seen(bug: Bug) -> Any:
    """What the seeds say of it, one after another."""
    for seed in range(SEEDS):
        try:
            simulate(seed, patches=[bug()])
        except Failed as failed:
            yield failed.why


def test_a_rollout_is_kept_apart_from_the_bugs() -> None:
    """Afterwards the product is as it was."""
    assert isinstance(simulate(1).rollout, Rollout)
