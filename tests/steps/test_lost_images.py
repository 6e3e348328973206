"""An image that is deleted by hand while it is made is noticed and made anew; one that shows late is waited for."""

from __future__ import annotations

import pytest

from providers.compute import Image
from providers.compute.fake import Fault
from tests.support.runner import Runner, running

SERVER = "web-1"


def image_of(r: Runner) -> str:
    return str(r.upgrade(SERVER).notes.get("image", ""))


def wait(r: Runner, seconds: float) -> None:
    end = r.clock() + seconds
    r.until(lambda: r.clock() >= end)


def test_an_image_that_is_deleted_while_it_is_waited_for_is_made_anew() -> None:
    with running([SERVER, "web-2"]) as r:
        r.until(lambda: bool(image_of(r)))
        first, start = image_of(r), r.clock()
        del r.cloud.things[first]
        r.until(lambda: r.upgrade(SERVER).attempt("create_image") == 1)
        assert 50 < r.clock() - start < 90, "not at the first look, and not at the deadline"
        assert f"image {first} of web-1 is gone" in r.upgrade(SERVER).why
        r.until(lambda: r.record().state == "succeeded")
        assert not r.made_twice()


def test_a_server_whose_images_are_deleted_again_and_again_goes_back() -> None:
    with running([SERVER, "web-2"]) as r:

        def ended() -> bool:
            r.cloud.things.pop(image_of(r), None)
            return r.upgrade(SERVER).terminal

        r.until(ended)
        assert r.upgrade(SERVER).state == "failed" and SERVER in r.serving()


def test_an_image_that_is_deleted_before_it_is_cloned_is_made_anew() -> None:
    with running([SERVER, "web-2"]) as r:
        r.until(lambda: r.upgrade(SERVER).step == "provision")
        first = r.upgrade(SERVER).results["create_image"]["image"]
        del r.cloud.things[first]
        r.until(lambda: r.upgrade(SERVER).step == "create_image")
        assert f"image {first} of web-1 is gone" in r.upgrade(SERVER).why and SERVER in r.serving()
        r.finish()
        assert (r.record().state, r.upgrade(SERVER).state) == ("succeeded", "upgraded")
        assert r.upgrade(SERVER).attempts == {"create_image": 1, "provision": 1} and not r.made_twice()
        assert [len(r.alive(role)) for role in ("image", "target")] == [2, 2]


def test_what_was_made_of_a_deleted_image_and_not_heard_of_ends_before_another_is_made() -> None:
    with running([SERVER, "web-2"]) as r:
        made: list[str] = []

        def lost(call: str) -> Fault:
            if call != "ensure_server" or made:
                return ""
            made.append(r.upgrade(SERVER).results["create_image"]["image"])
            return "after"

        r.cloud.fault = lost
        r.until(lambda: bool(made))
        (unheard,) = r.alive("target")
        del r.cloud.things[made[0]]
        most = 0

        def anew() -> bool:
            nonlocal most
            mine = [id for id in r.alive("target") if r.cloud.things[id].view.tags["changeover:server"] == SERVER]
            most = max(most, len(mine))
            return r.upgrade(SERVER).state == "upgraded"

        r.until(anew)
        assert most == 1 and unheard not in r.alive("target")


@pytest.mark.parametrize("seconds", [5.0, 40.0])
def test_an_image_that_does_not_show_for_a_while_is_waited_for(seconds: float) -> None:
    with running([SERVER, "web-2"]) as r:
        r.until(lambda: bool(image_of(r)))
        hidden = r.cloud.things.pop(image_of(r))
        assert isinstance(hidden.view, Image)
        wait(r, seconds)
        r.cloud.things[hidden.view.id] = hidden
        r.until(lambda: r.record().state == "succeeded")
        assert r.upgrade(SERVER).attempt("create_image") == 0 and not r.made_twice()
