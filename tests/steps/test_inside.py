"""What a new server may still come to after its boot is waited for, and no longer than its step may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from providers.guest import Facts
from providers.guest.fake import FakeGuest
from tests.support.runner import running

SERVER = "web-1"
CHECKS: Mapping[str, Any] = {
    "smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 2, "every": "1s", "probe": "fake"},
    "guest": {"listening": [8080], "clock": "2s"},
}


@pytest.mark.parametrize(
    ("at_first", "said"),
    [({"listening": ()}, "nothing listens at port 8080"), ({"clock_offset": -3.0}, "its clock is 3.0 s behind")],
)
@pytest.mark.parametrize("comes", [True, False], ids=["and comes", "and never comes"])
def test_what_is_not_there_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, at_first: dict[str, Any], said: str, comes: bool
) -> None:
    with running([SERVER], checks=CHECKS) as r:
        honest, asked = FakeGuest.facts, [0]

        def facts(self: FakeGuest, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
            asked[0] += 1
            late = at_first if asked[0] < 4 or not comes else {}
            found = honest(self, ids, paths=paths)
            return {id: replace(each, **{"listening": (8080,), **late}) for id, each in found.items()}

        monkeypatch.setattr(FakeGuest, "facts", facts)
        r.until(lambda: said in r.upgrade(SERVER).why)
        assert r.upgrade(SERVER).step == "poll_readiness"
        r.until(lambda: r.upgrade(SERVER).terminal or r.upgrade(SERVER).state == "upgraded")
        assert r.upgrade(SERVER).state == ("upgraded" if comes else "failed")
        assert comes or said in r.upgrade(SERVER).cause
        assert r.serving()


@pytest.mark.parametrize("comes", [True, False], ids=["and comes", "and never comes"])
def test_where_something_listens_on_a_something_has_to_on_b(monkeypatch: pytest.MonkeyPatch, comes: bool) -> None:
    honest, asked = FakeGuest.facts, [0]

    def facts(self: FakeGuest, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        """A listens for its administrators as well, and at a port that it was given by chance."""
        found: dict[str, Facts] = {}
        for id, each in honest(self, ids, paths=paths).items():
            new = "changeover:role" in self.cloud.things[id].view.tags
            asked[0] += new
            found[id] = replace(
                each, listening=(22, 8080, 41234) if not new else (22, 8080)[asked[0] < 4 or not comes :]
            )
        return found

    monkeypatch.setattr(FakeGuest, "facts", facts)
    with running([SERVER], checks={**CHECKS, "guest": {"listening_like_old": True}}) as r:
        r.until(lambda: "nothing listens at port 22, and on A something did" in r.upgrade(SERVER).why)
        assert "41234" not in r.upgrade(SERVER).why
        r.until(lambda: r.upgrade(SERVER).terminal or r.upgrade(SERVER).state == "upgraded")
        assert r.upgrade(SERVER).state == ("upgraded" if comes else "failed")
        assert r.serving()
