"""Operators: what they ask of a rollout in the middle of anything, and what they do to the world by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from orchestrator import operations
from orchestrator.domain.fleet import Fleet
from orchestrator.errors import ChangeoverError, Conflict, IllegalTransition, Locked, PointOfNoReturn
from providers.compute import Server
from tests.simulation.cloud import Cloud
from tests.simulation.remote import RemoteStore, Wire
from tests.simulation.scenario import ROLLOUT

ACTOR: Final = "somebody"
TRIES: Final = 5  # of a command whose answer was lost


@dataclass(kw_only=True)
class People:
    """`asked`: waves wait for them. `store` is reached like anybody's; `cloud` is touched directly, by other tools than
    ours."""

    wire: Wire
    store: RemoteStore
    cloud: Cloud
    names: list[str]
    asked: bool
    second_rollout: Callable[[], Any]
    ask: Callable[..., None]

    # -- through the command line -----------------------------------------------------------------------------------

    def act(self) -> None:
        """One of the verbs, at a random server where it wants one."""
        random = self.wire.scheduler.random
        server = random.choice(self.names)
        if self.asked and random.random() < 0.4:
            who, store = random.choice("ab"), self.any_store
            self.does("approve", lambda: operations.approve(store, ROLLOUT, who=who, actor=ACTOR))
            self.does("promote", lambda: operations.promote(store, ROLLOUT, actor=ACTOR))
            return
        verbs: dict[str, Callable[[], Any]] = {
            "pause": lambda: operations.pause(self.any_store, ROLLOUT, actor=ACTOR),
            "resume": lambda: operations.resume(self.any_store, ROLLOUT, actor=ACTOR),
            "abort": lambda: operations.abort(self.any_store, ROLLOUT, actor=ACTOR),
            "rollback": lambda: operations.rollback(self.any_store, ROLLOUT, actor=ACTOR),
            "rollback server": lambda: operations.rollback_server(self.any_store, ROLLOUT, server, actor=ACTOR),
            "retry": lambda: operations.retry(self.any_store, ROLLOUT, [server], actor=ACTOR),
            "retry all": lambda: operations.retry(self.any_store, ROLLOUT, None, actor=ACTOR),
            "freeze": lambda: operations.freeze(self.any_store, actor=ACTOR, reason="to see"),
            "unfreeze": lambda: operations.unfreeze(self.any_store, actor=ACTOR),
            "second rollout": self.second,
        }
        often = {"pause": 3, "resume": 4, "rollback server": 4, "retry": 2, "retry all": 2, "freeze": 2, "unfreeze": 3}
        verb = random.choices(list(verbs), weights=[often.get(each, 1) for each in verbs])[0]
        self.does(verb, verbs[verb], about=server)

    @property
    def any_store(self) -> Any:
        return self.store

    def does(self, verb: str, what: Callable[[], Any], *, about: str = "") -> bool:
        """Again, when no answer came. Whether it was done or was not applicable, rather than unknown."""
        for _ in range(TRIES):
            try:
                what()
            except (IllegalTransition, PointOfNoReturn, Locked) as no:
                self.wire.trace.add(f"{verb}: no", about, no)
                return True
            except ChangeoverError as error:
                self.wire.trace.add(f"{verb}: unknown", about, error)
                self.wire.scheduler.sleep(1.0)
            else:
                self.wire.trace.add(f"{verb}: done", about)
                return True
        return False

    @property
    def waiter(self) -> operations.Waiter:
        """Patient, in virtual time."""
        scheduler = self.wire.scheduler
        return operations.Waiter(monotonic=scheduler.clock, sleep=scheduler.sleep, every=0.5)

    def settle(self, rollout: str, server: str) -> None:
        """What is held for ever is ended as it is: served by its old server, or else by its new one."""

        def settles() -> None:
            for side in ("old", "new"):
                try:
                    operations.settle(
                        self.any_store,
                        self.ask,
                        rollout,
                        server,
                        serving=side,
                        because="nothing else has helped",
                        unchecked=False,
                        actor=ACTOR,
                        waiter=self.waiter,
                    )
                except Conflict as seen:
                    self.wire.trace.add(f"settle {side}: no", server, seen)
                else:
                    return

        self.does("settle", settles, about=server)

    def rebuild(self, fleet: Fleet) -> bool:
        """The store has lost everything: whether it knows the rollout again. A server of which nobody can say where it
        stands is left out."""
        left_out: set[str] = set()
        while True:
            try:
                operations.rebuild(
                    self.any_store,
                    self.ask,
                    fleet,
                    rollout=ROLLOUT,
                    act=True,
                    actor=ACTOR,
                    without=left_out,
                    waiter=self.waiter,
                )
            except ChangeoverError as error:
                self.wire.trace.add("rebuild: no", error)
                lines = str(error).splitlines()
                unclear = {spec.name for spec in fleet.servers if any(f"{spec.name}:" in line for line in lines)}
                left_out |= unclear
                if not unclear or len(left_out) == len(fleet.servers):
                    return False
                self.wire.checks.evidence.left_out(unclear)
            else:
                self.wire.trace.add("rebuild: done")
                self.wire.checks.left_out |= left_out
                self.wire.checks.forget()
                return True

    def second(self) -> None:
        """Somebody else applies a plan for servers of this rollout: refused while it is open."""
        before = [rollout for rollout in self.store.open_rollouts() if rollout.id == ROLLOUT]
        self.second_rollout()
        self.wire.checks.must(not before, "I8", f"a second rollout has begun beside {before}")

    # -- by hand ----------------------------------------------------------------------------------------------------

    def meddle(self) -> None:
        """Something is deleted, stopped, untagged or taken out, where there is something."""
        random = self.wire.scheduler.random
        server = random.choice(self.names)
        hands = [
            self._deletes_b,
            self._deletes_image,
            self._untags,
            self._removes_member,
            self._stops_a,
            self._deletes_a,
        ]
        random.choice(hands)(server)
        self.wire.checks.changed_by_outside()

    def _made(self, server: str, kind: str) -> list[str]:
        """What was made for it and lives."""
        return [
            thing.view.id
            for thing in self.cloud.things.values()
            if thing.view.tags.get("changeover:server") == server
            and isinstance(thing.view, Server) == (kind == "server")
            and thing.view.state not in ("terminated", "failed")
        ]

    def _deletes_b(self, server: str) -> None:
        for id in self._made(server, "server"):
            self.wire.trace.add("by hand: deletes B", server, id)
            self.cloud.dies(id)

    def _deletes_image(self, server: str) -> None:
        for id in self._made(server, "image"):
            self.wire.trace.add("by hand: deletes the image", server, id)
            self.wire.checks.evidence.outside("delete_image", id)
            self.wire.checks.touched.add(id)
            self.cloud.things.pop(id)

    def _untags(self, server: str) -> None:
        for id in self._made(server, "server"):
            self.wire.trace.add("by hand: untags B", server, id)
            self.wire.checks.evidence.outside("untag", id)
            self.wire.checks.touched.add(id)
            thing = self.cloud.things[id]
            thing.view = replace(thing.view, tags={"changeover:managed": "1"})

    def _removes_member(self, server: str) -> None:
        for pool, members in self.cloud.pools.items():
            mine = [name for name in members if name == server or name.startswith(f"{server}.g")]
            if mine:
                name = self.wire.scheduler.random.choice(mine)
                self.wire.trace.add("by hand: removes a member", pool, name)
                del members[name]
                self.wire.checks.evidence.member_lost(pool, name)
                self.wire.checks.taken(server)

    def _stops_a(self, server: str) -> None:
        thing = self.cloud.get(server)
        if thing is not None and not thing.protected and thing.view.state == "running":
            self.wire.trace.add("by hand: stops A", server)
            self.wire.checks.evidence.outside("stop", server)
            thing.view = replace(thing.view, state="stopped")
            self.wire.checks.taken(server)

    def _deletes_a(self, server: str) -> None:
        """Running, or stopped and kept."""
        thing = self.cloud.get(server)
        if thing is not None and not thing.protected and thing.view.state in ("running", "stopped"):
            self.wire.trace.add("by hand: deletes A", server)
            self.cloud.dies(server)
