"""What a person sees of Flower and of the fleet page, in a real browser, while servers are replaced."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from orchestrator.domain.steps import STEPS
from orchestrator.web import sessions
from tests.support.shop import shop

pytestmark = pytest.mark.debian
CHROMIUM = shutil.which("chromium")
KINDS = "() => [...document.querySelectorAll('.grid a')].map(cell => cell.className)"


@pytest.mark.timeout(300)
def test_page_and_flower_tell_the_truth_while_servers_are_replaced(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with shop(tmp_path, servers=2, watched=True) as whole:
        assert whole.supervisor.flower_credentials is not None
        user, _, password = whole.supervisor.flower_credentials.read_text().strip().partition(":")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            )
            fleet = browser.new_page(viewport={"width": 1280, "height": 800})
            _, path = sessions.invite(whole.store, "ann", ["read"], actor="test")
            fleet.goto(f"{whole.supervisor.page_url}{path}")
            fleet.wait_for_url(f"{whole.supervisor.page_url}/")
            whole.apply()
            fleet.wait_for_selector(f'a[href="/rollouts/{whole.id}"]', timeout=60_000)  # by itself
            fleet.click(f'a[href="/rollouts/{whole.id}"]')
            shown: set[str] = set()
            view = whole.until_ended(lambda _view: shown.update(fleet.evaluate(KINDS)))
            assert {u.state for u in view.upgrades} == {"upgraded"}
            fleet.wait_for_selector("h1:has-text('Every server is upgraded')", timeout=60_000)
            assert fleet.evaluate(KINDS) == ["ok", "ok"]
            assert {"w", "ok"} < shown and shown & {"c0", "c1", "c2", "c3", "c4", "c5"}, shown
            assert re.fullmatch(r"0\s+failed user requests, of [1-9][\d,]*", fleet.inner_text(".tile.users"))
            fleet.click('.grid a[href="web-002"]')
            link = fleet.get_attribute("a:has-text('Its tasks in Flower')", "href")
            assert "same as the old server" in fleet.inner_text(".story") and "is serving" in fleet.inner_text(".story")
            page = browser.new_context(
                http_credentials={"username": user, "password": password}, viewport={"width": 1600, "height": 1200}
            ).new_page()
            assert link is not None and link.startswith(whole.supervisor.flower_url)
            page.goto(link)
            page.locator("select").first.select_option("100")
            page.wait_for_function(
                "names => { const rows = [...document.querySelectorAll('#tasks-table tbody tr')].map(r => r.innerText);"
                " return rows.every(row => row.includes('web-002'))"
                " && names.every(name => rows.some(row => row.includes('tasks.' + name))); }",
                arg=list(STEPS),
            )
            text = "\n".join(page.locator("#tasks-table tbody tr").all_inner_texts())
            page.screenshot(path=str(tmp_path / "flower.png"))
            browser.close()
        names = set(re.findall(r"tasks\.(\w+)", text))
        assert set(STEPS) <= names
        assert re.search(rf"{whole.id}:web-002:\d:smoke_test:e\d+", text)
        assert "web-001" not in text
        assert re.search(r"RETRY[\s\S]*(is being made|soaking|passes in a row)", text), text
        assert "is starting" in text, "what the next step waits for stands in the result of provision"
