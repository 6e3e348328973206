"""The fleet page in a real browser: it follows what happens across a cut, its buttons act, and it stays quick."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from orchestrator import operations
from orchestrator.domain.upgrade import Admitted, Held
from orchestrator.store import Users
from orchestrator.web import sessions
from tests.support.api import Served
from tests.unit.test_operations import FLEET, at_step, put, row, upgraded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.debian
CHROMIUM = shutil.which("chromium")


class Wire:
    """Carries bytes between browser and server, and can be cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._ends: set[socket.socket] = set()
        self._cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                self._ends |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self._cut = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()
        for end in self._ends:
            end.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, api: Served) -> Iterator[Page]:
    """Nothing on it fails, and nothing is kept from running."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = context.new_page()
    said: list[str] = []
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("console", lambda each: said.append(each.text) if "Content Security Policy" in each.text else None)
    yield found
    context.close()
    assert said == []


def come_in(page: Page, api: Served, *, url: str = "") -> None:
    page.goto(f"{url or api.url}/login")
    page.fill("input[name=token]", api.token())
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url or api.url}/")


def cell(page: Page, server: str, kind: str) -> None:
    page.wait_for_selector(f'.grid a.{kind}[href="{server}"]', timeout=60_000)


def hold(api: Served, id: str, server: str) -> None:
    put(api.store, id, server, row(api.store, id, server).upgrade.after(Held(why="the quota is spent")))


def test_what_happens_is_seen_without_looking_again(page: Page, api: Served) -> None:
    id = api.applied()
    come_in(page, api)
    page.click(f'a[href="/rollouts/{id}"]')
    page.wait_for_selector("text=Live")
    cell(page, "web-1", "w")
    at_step(api.store, id, "web-1", "swap")
    cell(page, "web-1", "c4")
    assert page.inner_text(".legend li[data-kind=c4] b") == "1"
    upgraded(api.store, id, "web-2")
    cell(page, "web-2", "ok")
    hold(api, id, "web-1")
    cell(page, "web-1", "held")
    page.wait_for_selector("h1:has-text('web-1 is held at swap')", timeout=60_000)
    assert "web-1 is held" in page.title()
    api.store.put_users(id, Users(requests=100, failed=2, at=time.time()))
    page.wait_for_selector("h1:has-text('2 user requests failed')", timeout=60_000)
    assert page.get_attribute("section.hero", "class") == "hero bad"


def test_after_a_cut_it_goes_on_where_it_was(page: Page, api: Served) -> None:
    id = api.applied()
    wire = Wire(int(api.url.rpartition(":")[2]))
    try:
        come_in(page, api, url=wire.url)
        asked: list[str | None] = []
        page.on("request", lambda each: asked.append(each.url) if "/live" in each.url else None)
        page.goto(f"{wire.url}/rollouts/{id}")
        page.wait_for_selector("text=Live")
        at_step(api.store, id, "web-1", "provision")
        cell(page, "web-1", "c1")
        wire.cut()
        page.wait_for_selector("text=Cut off", timeout=60_000)
        upgraded(api.store, id, "web-2")
        at_step(api.store, id, "web-3", "smoke_test")
        wire.mend()
        cell(page, "web-2", "ok")
        cell(page, "web-3", "c3")
        page.wait_for_selector("#live:not(.cut)", timeout=60_000)
        assert len(asked) >= 2
    finally:
        wire.close()


def test_a_held_server_is_let_go_on_by_keyboard_alone(page: Page, api: Served) -> None:
    id = api.applied()
    at_step(api.store, id, "web-2", "swap")
    hold(api, id, "web-2")
    come_in(page, api)
    page.goto(f"{api.url}/rollouts/{id}")
    page.focus(".grid a")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "web-2"
    page.keyboard.press("Enter")
    page.wait_for_url("**/servers/web-2")
    page.focus("a.button:has-text('Retry')")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Retry web-2?')")
    page.keyboard.press("Enter")  # the button has the focus
    page.wait_for_url("**/servers/web-2?did=retry")
    assert row(api.store, id, "web-2").upgrade.state == "waiting"


def test_somebody_elses_decision_in_between_is_not_run_over(page: Page, api: Served) -> None:
    id = api.applied()
    come_in(page, api)
    page.goto(f"{api.url}/rollouts/{id}")
    page.click("a.button:has-text('Abort')")
    operations.pause(api.store, id, actor="ben", why="let me look first")
    page.fill("input[name=why]", "enough")
    page.click("button:has-text('Abort')")
    page.wait_for_selector("h1:has-text('It was changed since you looked')")
    assert operations.find(api.store, id).state == "paused"
    page.goto(f"{api.url}/rollouts/{id}/abort")
    page.click("button:has-text('Abort')")
    page.wait_for_selector("text=Aborting: what has begun")
    assert operations.find(api.store, id).state == "aborting"


def test_all_of_it_is_there_without_a_script(browser: Browser, api: Served) -> None:
    id = api.applied()
    context = browser.new_context(
        java_script_enabled=False, color_scheme="dark", viewport={"width": 390, "height": 844}
    )
    page = context.new_page()
    come_in(page, api)
    page.goto(f"{api.url}/rollouts/{id}")
    assert page.locator(".grid a").count() == 3
    page.click("a.button:has-text('Pause')")
    page.fill("input[name=why]", "a look")
    page.click("button:has-text('Pause')")
    page.wait_for_selector("text=The rollout is paused")
    assert operations.find(api.store, id).why == "a look"
    context.close()


def test_a_link_opens_by_one_click_and_on_a_phone_nothing_sticks_out(browser: Browser, api: Served) -> None:
    id = api.applied()
    _, path = sessions.invite(api.store, "ann@home", ["read"], actor="test")
    context = browser.new_context(viewport={"width": 360, "height": 700})
    page = context.new_page()
    page.goto(f"{api.url}{path}")
    page.wait_for_url(f"{api.url}/")
    for where in ("/", f"/rollouts/{id}", f"/rollouts/{id}/servers/web-1"):
        page.goto(f"{api.url}{where}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
    context.close()


@pytest.mark.timeout(240)
def test_two_thousand_servers_stay_smooth_while_hundreds_move_at_once(page: Page, api: Served) -> None:
    names = [f"web-{n:04}" for n in range(2000)]
    servers = "\n".join(f"  - {{name: {name}, pools: [web]}}" for name in names)
    id = api.applied(re.sub(r"(?s)  - \{name: web-1.*?web-3[^\n]*", servers, FLEET))
    come_in(page, api)
    page.goto(f"{api.url}/rollouts/{id}")
    page.wait_for_selector("text=Live")
    page.evaluate(
        "() => { window.touched = 0; const note = seen => { touched += seen.length; };"
        " const all = {subtree: true, childList: true, attributes: true, characterData: true};"
        " new MutationObserver(note).observe(document.body, all); }"
    )
    page.focus(".grid a")
    upgraded(api.store, id, names[0])
    for name in names[1:600]:  # as fast as the store takes it
        put(api.store, id, name, row(api.store, id, name).upgrade.after(Admitted(at=api.store.now())))
        if name.endswith("00"):  # and somebody goes over them
            page.keyboard.press("ArrowRight")
    cell(page, names[599], "c0")
    page.wait_for_function("() => document.querySelector('.legend li[data-kind=c0] b').textContent === '599'")
    assert page.evaluate("document.activeElement.getAttribute('href')") != names[0]
    touched = page.evaluate("touched")
    assert touched < 5 * 600, f"{touched} nodes were touched: more than the cells that moved"
