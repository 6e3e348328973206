"""What a person sees in Flower, in a real browser, while servers are replaced."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from orchestrator.domain.steps import STEPS
from tests.support.shop import shop

pytestmark = pytest.mark.debian
CHROMIUM = shutil.which("chromium")


@pytest.mark.timeout(300)
def test_flower_shows_every_step_finds_a_server_and_says_what_a_step_waits_for(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with shop(tmp_path, servers=2, flower=True) as whole:
        whole.apply()
        view = whole.until_ended()
        assert {u.state for u in view.upgrades} == {"upgraded"}
        assert whole.supervisor.flower_credentials is not None
        user, _, password = whole.supervisor.flower_credentials.read_text().strip().partition(":")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            )
            page = browser.new_context(
                http_credentials={"username": user, "password": password}, viewport={"width": 1600, "height": 1200}
            ).new_page()
            page.goto(f"{whole.supervisor.flower_url}/tasks")
            page.locator("select").first.select_option("100")
            page.locator("input[type=search]").fill("web-002")
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
