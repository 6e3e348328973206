"""`python -m tests.golden.make`: what this version stores and sends, kept beside this file as `schema-N`.

Run it once for each schema, when that is final; what is there already is what an older version really wrote, and stays.
"""

from __future__ import annotations

import json
from pathlib import Path

import redis

from orchestrator import operations
from orchestrator.addresses import with_database
from orchestrator.dispatch import celery_sender, compose
from orchestrator.domain.upgrade import SCHEMA, Upgrade
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store import codec
from tests.support.runner import PORT, Runner, running
from tests.support.valkey import running_valkey

HERE = Path(__file__).parent


def journeys() -> dict[str, list[str]]:
    """Every version of every record of a rollout: one server upgraded, one rolled back, one set aside."""
    with running(["web-1", "web-2", "web-3"]) as runner:
        _fail(runner, "web-3")
        runner.until(lambda: runner.upgrade("web-2").has_begun("drain_old"))
        operations.rollback_server(runner.store, runner.rollout, "web-2", actor="anna", why="too slow")
        runner.until(lambda: runner.record().state == "paused")  # one failed, none is allowed
        operations.resume(runner.store, runner.rollout, actor="anna")
        runner.finish()
        entries = operations.events(runner.store, runner.rollout)
        spec = runner.store.document("spec", runner.rollout)
        ledger = runner.store.ledger(runner.rollout)
    records = [(bool(entry.server), json.dumps(entry.after)) for entry in entries if entry.after]
    return {
        "upgrades": [text for server, text in records if server],
        "rollouts": [text for server, text in records if not server],
        "ledger": [codec.LEDGER.dump(item).decode() for item in ledger],
        "specs": [json.dumps(spec)],
    }


def _fail(runner: Runner, server: str) -> None:
    def crash(point: str) -> None:
        row = runner.store.row(runner.rollout, server)
        provisioned = row.upgrade.results.get("provision", {}) if row is not None else {}
        if "server" in provisioned:
            runner.sites.fails(runner.cloud.things[str(provisioned["server"])].view.address, PORT)  # type: ignore[union-attr]  # it is a server

    runner.crash = crash


def messages() -> list[str]:
    """A chain as it lies in the queue."""
    with running_valkey() as valkey:
        settings = Settings(redis_url=valkey.url, broker_url=with_database(valkey.url, 1))
        celery_sender(make_app(settings))(compose(Upgrade(rollout="r1", server="web-1", wave=0), 3))
        with redis.Redis.from_url(with_database(valkey.url, 1)) as raw:
            (key,) = raw.keys(f"{settings.queue}*")
            return [message.decode() for message in raw.lrange(key, 0, -1)]


def main() -> None:
    folder = HERE / f"schema-{SCHEMA}"
    made = {**journeys(), "messages": messages()}
    folder.mkdir()
    for name, lines in made.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
