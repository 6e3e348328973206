"""What must be true of one server's upgrade whatever happened on its way, looked at from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import Event, Released, TurnedBack, Upgrade
from orchestrator.store import Entry
from providers.compute import Server
from tests.support.runner import Runner, running

SERVER = "web-1"
PATIENCE = 40.0  # seconds of virtual time for which a fault that does not go away by itself lasts
SWITCH = "balancer"  # of which kind: see `providers.traffic.fake`
SHORT = dict.fromkeys(STEPS, "30s")  # deadlines


def up(r: Runner) -> set[str]:
    """Members that users reach: in the pool, getting requests, and their server runs."""
    alive = {
        view.address
        for view in (r.cloud.now(thing) for thing in list(r.cloud.things.values()))
        if isinstance(view, Server) and view.state == "running"
    }
    return {name for name, m in r.cloud.pools["web"].items() if m.state == "serving" and m.address in alive}


@dataclass
class Watch:
    """Looks at the pool before every provider call and after every turn, and keeps the moments with too few. Where
    nothing dies by itself (`strict`), nobody who gets requests may be dead either."""

    r: Runner
    least: int = 1
    strict: bool = False
    dark: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        fault, turn = self.r.cloud.fault, self.r.turn
        self._store = self.r.store

        def asked(name: str) -> object:
            self.look(f"before {name}")
            return fault(name)

        def turned() -> None:
            turn()
            self.look("after a turn")

        self.r.cloud.fault = asked  # type: ignore[assignment] # it passes on what the fault says
        self.r.turn = turned  # type: ignore[method-assign] # the runner's own loop is to be watched as well

    def look(self, when: str) -> None:
        if len(up(self.r)) < self.least:
            self.dark.append(f"{when}, {self.r.upgrades()}: only {up(self.r)} of {self.r.members()} serve")
        # Who was cut off in a call has not released it, but nobody goes on before it is; where all of that is forgotten
        # its watchdog does it.
        still = self.r.store is self._store and self.r.cloud.frozen(SERVER) is not None
        if still and self.r.upgrade(SERVER).step != "create_image":
            self.dark.append(f"{when}, {self.r.upgrades()}: {SERVER} is still quiesced")
        getting = {name for name, m in self.r.cloud.pools["web"].items() if m.state == "serving"}
        if self.strict and getting != up(self.r):
            self.dark.append(f"{when}, {self.r.upgrades()}: {getting - up(self.r)} get requests and do not run")


def tell(r: Runner, event: Event, *, server: str = SERVER) -> Upgrade:
    """A person's word, stored as the operations do: whoever works on it is fenced, and it is due at once."""
    while True:
        row = r.store.row(r.rollout, server)
        assert row is not None
        to = row.upgrade.after(event)
        if to == row.upgrade:
            return to
        due = None if to.settled or to.state in ("pending", "held") else r.store.now()
        if r.store.turn(row, to, entry=Entry(event=type(event).__name__, actor="test"), due=due) is not None:
            return to


def turn_back(r: Runner, *, server: str = SERVER) -> Upgrade:
    return tell(r, TurnedBack(why="a person asked", at=r.store.now(), asked=True), server=server)


@contextmanager
def journey(direction: str) -> Iterator[tuple[Runner, Watch]]:
    """One server at the start of its way: forward until its old server is gone, or back from the very end."""
    retain = {"old_servers": "60s" if direction == "forward" else "24h"}
    policy = {
        "waves": ["rest"],
        "bake": "0s",
        "soak": "1s",
        "poll": "1s",
        "deadlines": SHORT,
        "drain": {"deadline": "30s", "quiet": "1s"},
    }
    quiesce = {"before": ["freeze"], "after": ["thaw"], "timeout": "30s"}
    with running([SERVER], retain=retain, rollout=policy, switch=SWITCH, quiesce=quiesce) as r:
        watch = Watch(r, strict=True)
        if direction == "undo":
            r.until(lambda: r.upgrade(SERVER).state == "upgraded")
            turn_back(r)
        yield r, watch


def settle(r: Runner, *, on_held: Callable[[], None] = lambda: None, limit: int = 500) -> None:
    """Go on until nothing will happen any more; a person who is asked says: go on."""
    for _ in range(5):
        r.until(lambda: r.upgrade(SERVER).settled or r.upgrade(SERVER).state == "held", limit=limit)
        if r.upgrade(SERVER).settled:
            return
        on_held()
        tell(r, Released(at=r.store.now()))
    raise AssertionError(f"held again and again: {r.upgrade(SERVER)}")


def whole(r: Runner, u: Upgrade) -> None:
    """The image that B was made of is of a moment at which A stood still, from before it was asked for."""
    if r.fleet.quiesce is None:
        return
    if not (image := u.results["create_image"]["image"]):
        return  # gone before a rebuild could see it
    source, asked, taken = r.cloud.moments[image]
    on = [each for each in r.cloud.freezes if each.server == source]
    assert any(each.since <= asked and taken <= each.until for each in on), (asked, taken, on)


def ends_well(r: Runner, watch: Watch) -> Upgrade:
    """Exactly one of A and B is left, it serves, users never saw less, and the ledger tells the same story."""
    u = r.upgrade(SERVER)
    assert u.settled, u
    assert not watch.dark, watch.dark[0]
    assert not r.made_twice()
    assert r.cloud.frozen(SERVER) is None, "nothing is quiesced any more"
    assert not any(r.cloud.prepared.values()), "what was prepared has been put back"
    old = r.cloud.things[SERVER].view
    if u.state == "upgraded":
        assert up(r) == set(r.members()) == {f"{SERVER}.g2"}
        assert r.alive("target") == [u.results["provision"]["server"]]
        assert old.state == "terminated"
        whole(r, u)
    else:
        assert up(r) == set(r.members()) == {SERVER}
        assert r.alive("target") == []
        assert old.state == "running"
        assert isinstance(old, Server) and not old.protected and "changeover:phase" not in old.tags
    assert r.alive("image") == []
    items = [item for item in r.store.ledger(r.rollout) if item.kind != "old server"]
    assert {item.state for item in items} <= {"live", "deleted"}, items
    assert {item.id for item in items if item.state == "live"} == {*r.alive("target"), *r.alive("image")}
    return u
