"""A server of the chaos: the demo's shop, with a log of its smoke tests and a way to be bad.

    python {root}/site.py --notes FOLDER --address ... (the rest is the shop's own)

Whoever does not come from the balancer's own address is the smoke test; each of its requests is a line in NOTES. With a
file `NEVER` in its folder it runs and never listens, as a server with a broken boot.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import shop  # the demo's site, beside this file

BALANCER = "127.0.0.99"
App = Callable[[Any, Any, Any], Awaitable[None]]


def noting(app: App, *, address: str, notes: Path) -> App:
    """The same site, with a line for each direct request."""
    boot = os.environ["CHANGEOVER_BOOT"]

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        if scope["client"][0] == BALANCER:
            await app(scope, receive, send)
            return

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                line = {"at": time.time(), "address": address, "boot": boot, "passed": message["status"] == 200}
                with (notes / f"{address}.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            await send(message)

        await app(scope, receive, told)

    return noted


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--notes", type=Path, required=True)
    ours, rest = parser.parse_known_args()
    if (Path(__file__).parent / "NEVER").exists():
        while True:
            time.sleep(60)
    build = shop.build

    def noted(*, server: str, **about: Any) -> Any:
        return noting(build(server=server, **about), address=server.rpartition(":")[0], notes=ours.notes)

    shop.build = noted
    sys.argv[1:] = rest
    shop.main()


if __name__ == "__main__":
    main()
