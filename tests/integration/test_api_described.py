"""What the API is described to do it does: schemathesis asks it, over the wire, what the description allows and what it
does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import hook_file
from orchestrator.domain.delivery import Delivery
from orchestrator.hooks import Carrier
from tests.support.api import listening, served
from tests.unit.test_hooks import written
from tests.unit.test_operations import at_step

EXAMPLES = 5  # of each operation, beside the edge cases of each parameter and field
# That a fleet file or a cursor makes sense is more than a schema can say.
EXCEPT = "positive_data_acceptance"


@pytest.mark.timeout(300)  # half a minute, where nothing else runs
def test_no_request_gets_an_answer_that_is_not_described(tmp_path: Path) -> None:
    with listening() as door, served(*door) as api:
        id = api.applied()
        at_step(api.store, id, "web-1", "swap")
        api.store.beat("w1", {"pid": 1}, ttl=3600)
        api.api.carrier = Carrier(store=api.store, ask=api.world, hooks=hook_file.load(written(tmp_path)))
        kept = Delivery(id="d1", hook="releases", key="m", event="e", received_at=1, asked_at=1, rollout="")
        api.store.put_delivery(kept.ended("ignored", "nothing"), {}, once="m", keep=3600)
        (tmp_path / "schemathesis.toml").write_text(
            f'[parameters]\n"path.id" = "{id}"\n"path.server" = "web-1"\n"path.name" = "releases"\n'
        )
        command = [
            *(str(Path(sys.executable).parent / "st"), "run", f"{api.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {api.token()}"),
            *("--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--generation-deterministic"),
            *("--exclude-checks", EXCEPT, "--continue-on-failure", "--suppress-health-check", "all", "--no-color"),
        ]
        clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(
            command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        selected, total = re.findall(r"(\d+) selected / (\d+) total", done.stdout)[0]
        assert selected == total and int(total) >= 24
        assert {rollout.id for rollout in api.store.rollouts()} == {id}, "nothing was made by chance"
