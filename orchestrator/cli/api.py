"""`api`: the door for programs, and for people with a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import say
from orchestrator.errors import BadInput


def api(
    address: Annotated[str, typer.Option("--address", help="The IPv4 address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0: the system chooses.")] = 8088,
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="Requests a second, of each token.")] = 10.0,
    hooks: Annotated[
        Path | None, typer.Option("--hooks", metavar="FILE", help="Webhooks to take.", show_default="CHANGEOVER_HOOKS")
    ] = None,
) -> int:
    """Serve the API and the fleet page here until Ctrl-C, to whoever has a token. Any number may run.

    It speaks HTTP without TLS: where it listens beyond this host, put a proxy with TLS in front.
    """
    import ipaddress
    from functools import partial

    from orchestrator import hook_file
    from orchestrator.api import serving
    from orchestrator.flower import listen
    from orchestrator.settings import Settings
    from orchestrator.web.site import make_site

    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise BadInput(f"{address!r} is no IPv4 address", place="--address", next="changeover api --help") from None
    settings = Settings.load()
    file = hooks or settings.hooks
    known = hook_file.fresh_hooks(file) if file is not None else None
    store = serving.open_store(settings)
    store.check(dev=settings.dev)
    serving.refuse_open_door(address, store)
    listener = listen(port, address=address, place="--port")
    where = f"http://{address}:{listener.getsockname()[1]}"
    say(f"API  {where}/v1   what there is: /openapi.json\npage {where}/")
    if known is not None:
        say(f"webhooks  /hooks/{{{','.join(known().known)}}}")
    pages = partial(make_site, flower=settings.flower_url)
    serving.serve(settings, store, listener, rate=rate, hooks=known, site=pages)
    return 0
