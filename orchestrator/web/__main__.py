"""API and page on the socket that was inherited, until SIGTERM: what `changeover up` starts."""

from __future__ import annotations

import socket
from functools import partial

from orchestrator import hook_file
from orchestrator.api import serving
from orchestrator.processes import INHERITED
from orchestrator.settings import Settings
from orchestrator.web.site import make_site

RATE = 50.0  # requests a second of each token: it is one person's, on their own machine


def main() -> None:
    settings = Settings.load()
    hooks = hook_file.fresh_hooks(settings.hooks) if settings.hooks is not None else None
    listener = socket.socket(fileno=INHERITED)
    pages = partial(make_site, flower=settings.flower_url)
    serving.serve(settings, serving.open_store(settings), listener, rate=RATE, hooks=hooks, site=pages)


if __name__ == "__main__":
    main()
