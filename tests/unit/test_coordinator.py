"""What a coordinator reads before it decides: the few that have changed, and all where it says something of all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pytest

from orchestrator import coordinator, reading
from orchestrator.coordinator import Coordinator
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade, Waiting
from orchestrator.errors import Unreachable, UnsafeStore
from orchestrator.reading import STALE
from orchestrator.store import Entry, Row
from orchestrator.store.memory import MemoryStore

NAMES = tuple(f"s{n:02}" for n in range(20))
IN_FLIGHT = 5
DID = Entry(event="did", actor="test")


class Read(MemoryStore):
    """Remembers whose records were asked for, each of which takes `each` seconds."""

    def __init__(self, site: Site) -> None:
        super().__init__(clock=lambda: site.now)
        self._site = site
        self.each = 0.0
        self.asked: list[str] = []
        self.away = False

    def rows(self, rollout: str, servers: Collection[str] | None = None) -> Sequence[Row]:
        if self.away:
            raise Unreachable("gone")
        self.asked += NAMES if servers is None else sorted(servers)
        self._site.now += self.each * len(NAMES if servers is None else servers)
        return super().rows(rollout, servers)


@dataclass
class Site:
    now: float = 1000.0
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Read(self)
        rollout = Rollout(
            id="r1",
            plan="p",
            fleet="shop",
            created_at=self.now,
            created_by="anna",
            waves=(NAMES[:10], NAMES[10:]),
            max_in_flight=IN_FLIGHT,
            allowed_failures=0,
            bake=0.0,
            on_abort="finish",
        )
        upgrades = [Upgrade(rollout="r1", server=name, wave=n // 10) for n, name in enumerate(NAMES)]
        self.store.create(rollout, upgrades, locks={})
        self.coordinator = Coordinator(
            store=self.store,
            publish=lambda messages: self.sent.append(messages[0]["kwargs"]["server"]),
            observe=lambda *_: None,
            monotonic=lambda: self.now,
            grace=600.0,
        )

    def tick(self) -> list[str]:
        """Whose records were read."""
        self.store.asked.clear()
        self.now += 0.01
        self.coordinator.tick()
        return sorted(set(self.store.asked))

    def ended(self, *names: str) -> None:
        for row in self.store.rows("r1", names):
            assert (
                self.store.turn(row, replace(row.upgrade, state="failed", direction="undo"), entry=DID, due=None)
                is not None
            )

    def edit(self, name: str, upgrade: Upgrade) -> None:
        """By hand: past the scripts, and so past the audit log."""
        record = self.store._record("r1", name)
        assert record is not None
        record.upgrade = upgrade

    def wave(self) -> int:
        rollout = self.store.rollout("r1")
        assert rollout is not None
        return rollout.wave


@pytest.fixture
def site() -> Site:
    made = Site()
    assert made.tick() == list(NAMES)
    assert made.sent == list(NAMES[:IN_FLIGHT])
    made.tick()
    return made


def test_who_is_through_and_who_begins_instead_are_read_and_no_others(site: Site) -> None:
    site.ended("s01", "s03")
    assert site.tick() == ["s01", "s03", "s05", "s06"]
    assert site.sent[IN_FLIGHT:] == ["s05", "s06"]
    assert site.tick() == ["s05", "s06"]
    assert site.tick() == []


def test_all_are_read_where_the_log_tells_of_too_many(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "NEWS", 3)
    site.ended("s01", "s02", "s03", "s04")
    assert site.tick() == list(NAMES)


def test_what_the_log_told_before_redis_went_away_is_not_missed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.ended("s00")
    with monkeypatch.context() as all_are_read:
        all_are_read.setattr(reading, "NEWS", 0)
        site.store.away = True
        with pytest.raises(Unreachable):
            site.tick()
    site.store.away = False
    site.tick()
    assert site.sent[IN_FLIGHT:] == ["s05"]


def test_what_the_log_does_not_tell_is_seen_after_a_while(site: Site) -> None:
    row = site.store.row("r1", "s05")
    assert row is not None
    site.edit("s05", replace(row.upgrade, state="held"))
    site.ended("s00")
    site.tick()
    assert "s05" not in site.sent
    site.now += STALE
    assert site.tick() == list(NAMES)


def test_who_was_edited_before_it_begins_is_not_written_over(site: Site) -> None:
    row = site.store.row("r1", "s05")
    assert row is not None
    site.edit("s05", replace(row.upgrade, domain="edited"))
    site.ended("s00")
    site.tick()
    begun = site.store.row("r1", "s05")
    assert begun is not None
    assert (begun.upgrade.domain, begun.upgrade.state) == ("edited", "running")


def test_a_wave_ends_by_what_is_stored_and_not_by_what_was_read_before(site: Site) -> None:
    for done in (NAMES[:5], NAMES[5:9]):
        site.ended(*done)
        site.tick()
        site.tick()
    row = site.store.row("r1", "s03")
    assert row is not None
    site.edit("s03", replace(row.upgrade, state="running"))
    site.ended("s09")
    assert site.tick() == list(NAMES)
    assert site.wave() == 0
    site.edit("s03", row.upgrade)
    site.now += STALE
    site.tick()
    assert site.wave() == 1


def test_few_are_read_at_once_though_all_would_take_long(site: Site) -> None:
    site.store.each = 0.1
    site.now += STALE
    site.ended("s00")
    assert site.tick() == list(NAMES)
    for number in range(1, 5):
        site.ended(f"s0{number}")
        site.now += 20 * 0.1 * 3
        assert len(site.tick()) <= 3, "the two seconds that all take may be spent once in forty"
    assert site.sent[IN_FLIGHT:] == ["s05", "s06", "s07", "s08", "s09"]
    site.ended(*NAMES[5:10])
    site.tick()
    assert site.wave() == 0
    site.now += 20 * 0.1 * len(NAMES)
    site.tick()
    assert site.wave() == 1


def test_what_cannot_be_decided_is_not_tried_all_the_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("of a record that somebody edited")

    site.store.each = 0.1
    monkeypatch.setattr(coordinator, "decide", broken)
    site.now += STALE
    site.ended("s00")
    spent = 0.0
    began = site.now
    while site.now < began + 100:
        before = site.now
        site.tick()
        spent += site.now - before - 0.01
        site.now += 0.1
    assert spent <= 0.11 * (site.now - began)


def test_who_may_begin_again_is_sent_once_though_its_message_waits(site: Site) -> None:
    row = site.store.row("r1", "s00")
    assert row is not None
    refused = replace(row.upgrade, state="waiting", wait=Waiting(reason="paused", at=site.now + 600, refused=True))
    assert site.store.turn(row, refused, entry=DID, due=site.now + 600) is not None
    for name in ("s01", "s02", "s03"):
        site.ended(name)
        site.tick()
        site.tick()
    assert site.sent[IN_FLIGHT:].count("s00") == 1
    site.now += STALE
    site.tick()
    assert site.sent[IN_FLIGHT:].count("s00") == 2


def test_pools_are_looked_after_though_nothing_can_be_decided(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    site.coordinator.patrol = lambda rollout, _ticket: asked.append(rollout)
    site.coordinator._views["r1"].look_every = 1.0

    def broken(*_: object, **__: object) -> None:
        raise UnsafeStore("the log is of another type")

    monkeypatch.setattr(site.store, "changed", broken)
    monkeypatch.setattr(site.store, "last_event", broken)
    site.ended("s00")
    site.tick()
    assert asked == ["r1"]
