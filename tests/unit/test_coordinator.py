"""What a coordinator reads before it decides: the few that have changed, and all where it says something of all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pytest

from orchestrator import reading
from orchestrator.coordinator import Coordinator
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import Unreachable
from orchestrator.reading import STALE
from orchestrator.store import Entry, Row
from orchestrator.store.memory import MemoryStore

NAMES = tuple(f"s{n:02}" for n in range(20))
IN_FLIGHT = 5
DID = Entry(event="did", actor="test")


class Read(MemoryStore):
    """Remembers whose records were asked for."""

    def __init__(self, clock: Site) -> None:
        super().__init__(clock=lambda: clock.now)
        self.asked: list[str] = []
        self.away = False

    def rows(self, rollout: str, servers: Collection[str] | None = None) -> Sequence[Row]:
        if self.away:
            raise Unreachable("gone")
        self.asked += NAMES if servers is None else sorted(servers)
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
