"""The faked world: the fake cloud, balancer, guests and probe of `providers`, with what real ones do besides: things
show late, B is bad in one of many ways, requests hold up a drain, and servers fall ill or die."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from providers import Caps, Key, errors
from providers.compute import Image, Server, Size
from providers.compute.fake import FakeCloud, FakeCompute
from providers.guest import Facts
from providers.guest.fake import FakeGuest
from providers.probe import Comparison, Expect, Outcome, Request
from providers.traffic import Guard, Member, MemberView
from providers.traffic.fake import FakeTraffic

NEVER = 1e12

# What may be wrong with B, and how often each is met among those that are bad.
FATES: Final = (
    "never ready",
    "failed",
    "slow",
    "unfit",
    "mute",
    "smoke fails",
    "flaky",
    "never joins",
    "sick when serving",
    "dies when serving",
    "reboots",
)
BEFORE_USERS: Final = frozenset({"never ready", "failed", "unfit", "mute", "smoke fails"})  # such a B never serves


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One smoke-test request as answered."""

    at: float
    boot: str
    passed: bool


@dataclass
class Cloud(FakeCloud):
    """`fates` by the id of A. `hides` and `lingers` are asked whether a new thing shows late, and whether a request in
    flight outlasts every drain. `hidden`: until when a thing does not show. `ill`: servers that run and do not serve.
    `probed`: smoke tests by address. `later` is the scheduler's `at`; `hurt` hears what the outside does to a server.
    """

    random: Random = field(default_factory=Random)
    later: Callable[[float, Callable[[], None]], None] = lambda _seconds, _what: None
    hides: Callable[[], bool] = lambda: False
    lingers: Callable[[], bool] = lambda: False
    fates: dict[str, str] = field(default_factory=dict)
    made_for: dict[str, str] = field(default_factory=dict)  # id of B -> id of A
    hidden: dict[str, float] = field(default_factory=dict)
    ill: set[str] = field(default_factory=set)
    probed: dict[str, list[Probed]] = field(default_factory=dict)
    hurt: Callable[[str, str], None] = lambda _id, _why: None

    def alive(self, address: str) -> bool:
        if not super().alive(address):
            return False
        id = self.addresses[address]
        return id not in self.ill and self.fate(id) != "never joins"

    def fate(self, id: str) -> str:
        """What is wrong with this B; nothing of any other server."""
        return self.fates.get(self.made_for.get(id, ""), "")

    def shows(self, id: str) -> bool:
        return self.clock() >= self.hidden.get(id, 0.0)

    def falls_ill(self, id: str) -> None:
        if self.get(id) is not None:
            self.ill.add(id)
            self.hurt(id, "ill")

    def reboots(self, id: str) -> None:
        """By itself, within seconds."""
        thing = self.get(id)
        if thing is not None and isinstance(thing.view, Server) and thing.view.state == "running":
            stem, _, boots = thing.view.boot.partition("#")
            thing.view = replace(thing.view, state="pending", boot=f"{stem}#{int(boots) + 1}")
            thing.ready_at = self.clock() + 2.0
            self.hurt(id, "away for a moment")

    def dies(self, id: str) -> None:
        """By itself, or by a hand that is not ours."""
        thing = self.get(id)
        if thing is not None:
            thing.view = replace(thing.view, state="terminated")
            self.hurt(id, "dead")


class Compute(FakeCompute):
    cloud: Cloud

    def _look(self, name: str, ids: Sequence[str]) -> Mapping[str, Server | Image]:
        return {id: thing for id, thing in super()._look(name, ids).items() if self.cloud.shows(id)}

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        return [thing for thing in super().inventory(tags) if self.cloud.shows(thing.id)]

    def ensure_image(self, key: Key, *, source: str) -> Image:
        self.cloud.image_seconds = self.cloud.random.uniform(0.5, 8.0)
        image = super().ensure_image(key, source=source)
        self._shows_late(image.id)
        return image

    def ensure_server(self, key: Key, *, image: str, like: str, size: Size) -> Server:
        if not self.cloud.shows(image):
            raise errors.NotYetVisible(f"image {image} does not show yet")
        fate = self.cloud.fates.get(like, "")
        usual = self.cloud.random.uniform(0.5, 10.0)
        self.cloud.ready_seconds = {"never ready": NEVER, "slow": 45.0}.get(fate, usual)
        server = super().ensure_server(key, image=image, like=like, size=size)
        if self.cloud.made_for.setdefault(server.id, like) and fate == "reboots" and server.id not in self.cloud.hidden:
            self.cloud.later(self.cloud.random.uniform(5.0, 60.0), lambda: self.cloud.reboots(server.id))
        self._shows_late(server.id)
        return server

    def _shows_late(self, id: str) -> None:
        seconds = self.cloud.random.uniform(0.0, 20.0) if self.cloud.hides() else 0.0
        self.cloud.hidden.setdefault(id, self.cloud.clock() + seconds)


class Traffic(FakeTraffic):
    """Requests in flight hold up a drain for a while, some for ever."""

    cloud: Cloud

    def add(self, pool: str, member: Member) -> MemberView:
        was = self._state(pool, member.name)
        view = super().add(pool, member)
        if view.state == "serving" and was != "serving":
            self._serves_now(self.cloud.addresses.get(member.address, ""))
        return view

    def _serves_now(self, id: str) -> None:
        fate = self.cloud.fate(id)
        if fate == "sick when serving":
            self.cloud.later(self.cloud.random.uniform(0.0, 60.0), lambda: self.cloud.falls_ill(id))
        elif fate == "dies when serving":
            self.cloud.later(self.cloud.random.uniform(0.0, 60.0), lambda: self.cloud.dies(id))

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        was = self._state(pool, name)
        view = super().remove(pool, name, guard=guard, cut=cut)
        if view.state == "draining" and was == "serving" and self.cloud.random.random() < 0.7:
            self._set(pool, replace(self._pool(pool)[name], sessions=self.cloud.random.randint(1, 3)))
            seconds = 120.0 if self.cloud.lingers() else self.cloud.random.uniform(0.1, 4.0)
            self.cloud.later(seconds, lambda: self._ends(pool, name))
            return self._view(pool, name)
        return view

    def _ends(self, pool: str, name: str) -> None:
        found = self._pool(pool).get(name)
        if found is not None:
            self._set(pool, replace(found, sessions=0))

    def _state(self, pool: str, name: str) -> str:
        found = self.cloud.pools[pool].get(name)
        return found.state if found is not None else "absent"


class Guest(FakeGuest):
    cloud: Cloud

    def facts(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        found = super().facts(ids, paths=paths)
        unfit = {id: facts for id, facts in found.items() if self.cloud.fate(id) == "unfit"}
        return {
            **{id: facts for id, facts in found.items() if self.cloud.fate(id) != "mute"},
            **{id: replace(facts, disk_total=facts.disk_total // 2) for id, facts in unfit.items()},
        }


class Probe:
    """Asks the servers of a `Cloud` by their address."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        cloud = FakeCloud.of(settings)
        assert isinstance(cloud, Cloud)
        self.cloud = cloud

    @property
    def caps(self) -> Caps:
        return Caps()

    def check(self, address: str, port: int, request: Request, expect: Expect) -> Outcome:
        id = self.cloud.addresses.get(address, "")
        fate = self.cloud.fate(id)
        passed = FakeCloud.alive(self.cloud, address) and id not in self.cloud.ill and fate != "smoke fails"
        passed = passed and not (fate == "flaky" and self.cloud.random.random() < 0.4)
        thing = self.cloud.things.get(id)
        boot = thing.view.boot if thing is not None and isinstance(thing.view, Server) else ""
        self.cloud.probed.setdefault(address, []).append(Probed(at=self.cloud.clock(), boot=boot, passed=passed))
        why = "" if passed else f"GET {request.url} at {address}:{port}: answered 500"
        return Outcome(passed=passed, why=why, status=200 if passed else 500)

    def compare(
        self, old: tuple[str, int], new: tuple[str, int], request: Request, *, masks: tuple[str, ...]
    ) -> Comparison:
        return Comparison(same=True, differences=())


FAKES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "compute": Compute,
    "guest": Guest,
    "traffic": Traffic,
    "probe": Probe,
}
