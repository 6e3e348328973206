"""Mistakes that could be made in this product, each put in by a patch: what judges a rollout must notice every one.

None of them is in the product, nor a switch for it. Each is written as somebody would make it in good faith.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from orchestrator import coordinator
from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import Intent, Upgrade
from orchestrator.store import memory
from orchestrator.store.memory import MemoryStore
from providers.compute import Server
from providers.traffic import Guard
from tasks import BODIES, cleaning, drain_old, keys, membership, orphans, patrol, smoke_test, step, swap
from tasks.step import Done, StepFailed, Wait
from tasks.world import Turn, World

Patch = pytest.MonkeyPatch
Bug = Callable[[Patch], None]
NEVER = 1e12  # a time that no clock comes to


def random_token(patch: Patch) -> None:
    """Each try asks the cloud under a token of its own: whoever takes over makes a second one."""
    honest = keys.key

    def key(u: Upgrade, intent: Intent, *, role: str) -> Any:
        made = uuid.uuid4().hex
        # And the name with it: a second thing of a name of ours is ended as a stray.
        return replace(honest(u, intent, role=role), token=made, name=f"co-{made}")

    patch.setattr(keys, "key", key)


def no_intent(patch: Patch) -> None:
    """What is about to be done is kept in mind, and written down with its result."""

    def intent(_store: Any, claim: Any, to: Upgrade, **_how: Any) -> Any:
        return replace(claim, row=replace(claim.row, upgrade=to))

    honest = step._announce

    def announce(world: World, body: Any, turn: Turn) -> str | None:
        store = world.store
        forgetful = cast(Any, _With(store, intent=lambda *args, **how: intent(store, *args, **how)))
        return honest(cast(World, _With(world, store=forgetful)), body, turn)

    patch.setattr(step, "_announce", announce)


def no_guard(patch: Patch) -> None:
    """A member is taken out without asking who else serves."""
    patch.setattr(membership, "Guard", lambda **_how: Guard(min_healthy=0))


def counted_fence(patch: Patch) -> None:
    """The next fence is one more than the last that the store remembers."""
    patch.setattr(memory, "_fence_after", lambda previous, _now: previous + 1)


def counted_version(patch: Patch) -> None:
    """The next version is one more than the last that the store remembers."""
    patch.setattr(memory, "_version_after", lambda previous, _now: previous + 1)


def commit_without_owner(patch: Patch) -> None:
    """Whoever has worked on it may store what came of it."""

    def held(store: Any, claim: Any) -> Any:
        record = store._record(claim.rollout, claim.server)
        assert record is not None
        return record

    patch.setattr(MemoryStore, "_held", held)


def early_acknowledgement(patch: Patch) -> None:
    """Once somebody has taken the message nobody looks after the upgrade, until there is a result."""
    for name in ("claim", "renew"):
        honest = getattr(MemoryStore, name)

        def call(store: Any, *args: Any, _honest: Any = honest, **how: Any) -> Any:
            answer = _honest(store, *args, **how)
            rollout, server = (
                (answer.rollout, answer.server) if hasattr(answer, "fence") else (None, None)
            )  # or it was ignored
            if rollout is not None:
                store._place(store._record(rollout, server), None, "")
            return answer

        patch.setattr(MemoryStore, name, call)
    patch.setattr(MemoryStore, "release_owner", lambda _store, _prefix, **_how: 0)


def last_smoke_test_wins(patch: Patch) -> None:
    """A smoke test is repeated until it passes once."""

    def do(turn: Turn, intent: Intent) -> Done | Wait:
        rounds = int(turn.upgrade.notes.get("rounds", 0)) + 1
        why, _ = smoke_test.one_round(turn, intent.params["address"])
        if not why:
            return Done(result={"passes": 1, "rounds": rounds, "at": turn.now, **intent.params})
        if rounds >= turn.fleet.checks.smoke.tries:
            raise StepFailed(why)
        return Wait(reason=why, every=1.0, notes={"rounds": rounds, "last": why})

    patch.setattr(smoke_test, "do", do)


def undo_of_finished_steps_only(patch: Patch) -> None:
    """What had begun and not finished is left as it is."""
    for name in STEPS:
        body, honest = BODIES[name], BODIES[name].undo

        def lazy(turn: Turn, _name: str = name, _honest: Any = honest) -> Done | Wait:
            return cast(Done | Wait, _honest(turn)) if _name in turn.upgrade.results else Done()

        patch.setattr(body, "undo", lazy)


def out_before_in(patch: Patch) -> None:
    """A leaves its pools to make room for B."""
    honest = swap.do

    def do(turn: Turn, intent: Intent) -> Done | Wait:
        for pool, name in membership.names(membership.old_members(turn.server.seats)):
            turn.traffic.remove(pool, name, guard=Guard(min_healthy=0), cut=False)
        return honest(turn, intent)

    patch.setattr(swap, "do", do)


def in_before_tested(patch: Patch) -> None:
    """B is put into its pools first and tested there: who comes first asks it first."""
    honest = smoke_test.do

    def do(turn: Turn, intent: Intent) -> Done | Wait:
        for pool, member in membership.new_members(turn, intent.params["address"]):
            turn.traffic.add(pool, member)
        return honest(turn, intent)

    patch.setattr(smoke_test, "do", do)


def no_soak(patch: Patch) -> None:
    """As soon as B serves A may go."""
    honest = swap.do

    def do(turn: Turn, intent: Intent) -> Done | Wait:
        answer = honest(turn, intent)
        return Done(result={"since": turn.now}) if isinstance(answer, Wait) and "until" in answer.notes else answer

    patch.setattr(swap, "do", do)


def no_retention(patch: Patch) -> None:
    """A's time is up as soon as it is stopped."""
    honest = drain_old.do

    def do(turn: Turn, intent: Intent) -> Done | Wait:
        answer = honest(turn, intent)
        return replace(answer, retain_until=turn.now) if isinstance(answer, Done) else answer

    patch.setattr(drain_old, "do", do)


def remembered_only(patch: Patch) -> None:
    """What is undone is what the record remembers to have made; nobody asks the cloud."""

    def made(turn: Turn, _kind: Any, *, step: str, field: str, but: str) -> Mapping[str, str]:
        id = turn.upgrade.results.get(step, {}).get(field)
        return {id: ""} if id and id != but else {}

    patch.setattr(cleaning, "_made", made)
    patch.setattr(cleaning, "still_to_come", lambda *_args: None)


def no_orphan_finder(patch: Patch) -> None:
    """Nobody looks for what carries our mark and is in no ledger."""
    patch.setattr(orphans, "look", lambda *_args: [])


def no_quarantine(patch: Patch) -> None:
    """What one look finds, and no ledger has by its id yet, is deleted at once."""

    def scan(world: World, *, lane: str) -> Mapping[str, Any]:
        fleets = world.lanes().get(lane, ())
        for fleet in fleets:
            compute = world.compute(fleet)
            known = {item.id for r in world.store.rollouts() for item in world.store.ledger(r.id)}
            for thing in compute.inventory({keys.MANAGED: "1"}):
                if thing.id not in known:
                    end = compute.terminate if isinstance(thing, Server) else compute.delete_image
                    end(thing.id)
        return {}

    patch.setattr(orphans, "scan", scan)


def no_patrol(patch: Patch) -> None:
    """What was proven once stays so: nobody looks after the pools."""
    patch.setattr(patrol, "run", lambda *_args, **_how: {})


def no_net(patch: Patch) -> None:
    """Not a bug: nobody looks after pools, leftovers and agendas. What one line misses the next one catches, and hides
    that it was missed."""
    no_patrol(patch)
    no_orphan_finder(patch)
    patch.setattr(coordinator, "mend", lambda *_args, **_how: None)


def begins_while_paused(patch: Patch) -> None:
    """Whether the rollout may go on is asked when a message is sent, and not again when its step begins."""
    patch.setattr(MemoryStore, "_refusal", lambda *_args, **_how: None)


def unwritten_turn(patch: Patch) -> None:
    """What a person asks for changes the record, and leaves no entry."""
    honest = MemoryStore._change

    def change(store: Any, stored: Any, record: Any, to: Upgrade, doc: bytes, *, entry: Any, **how: Any) -> None:
        if entry.event != "TurnedBack":
            honest(store, stored, record, to, doc, entry=entry, **how)
            return
        record.entry -= 1
        honest(store, stored, record, to, doc, entry=entry, **how)
        stored.audit.pop()

    patch.setattr(MemoryStore, "_change", change)


def stopped_before_it_has_left(patch: Patch) -> None:
    """A is stopped first, and taken out of its pools then."""
    honest = drain_old.do

    def do(turn: Turn, intent: Intent) -> Done | Wait:
        turn.compute.stop(intent.params["server"])
        return honest(turn, intent)

    patch.setattr(drain_old, "do", do)


def nobody_sends_again(patch: Patch) -> None:
    """What is lost on its way is not sent again."""
    honest = MemoryStore._sent_out

    def sent_out(store: Any, record: Any, now: float, grace: float) -> int:
        epoch = honest(store, record, now, grace)
        store._due[record.upgrade.rollout, record.upgrade.server] = NEVER
        return epoch

    patch.setattr(MemoryStore, "_sent_out", sent_out)


class _With:
    """A thing with some of its attributes replaced."""

    def __init__(self, thing: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._thing = thing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._thing, name)
