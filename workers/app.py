"""Builds the worker: our tasks on the shared Celery configuration, in threads."""

from __future__ import annotations

import os
import socket
import warnings

from celery import signals
from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import SecurityWarning
from celery.worker.control import Panel

from orchestrator import garbage, logs
from orchestrator.addresses import parse
from orchestrator.dispatch import celery_sender
from orchestrator.messaging import make_app, queue_length
from orchestrator.settings import Settings
from orchestrator.store.connecting import connect
from orchestrator.store.health import check_messages
from tasks import register
from tasks.world import World
from workers import guard, order, plain, results, sent, taken
from workers.intake import CONSUMER
from workers.lifecycle import Lifecycle
from workers.watchdog import Watchdog


def run(name: str, *, concurrency: int | None = None) -> int:
    """Works until it is told to end; the exit code. Raises `UntestedKombu`, `Unreachable`, `UnsafeStore`."""
    guard.apply()
    taken.apply()
    plain.apply()
    order.apply()
    logs.configure(name)
    # With a receiver of its own, Celery leaves logging and the standard streams as they are.
    signals.setup_logging.connect(_keep_logging)
    # Celery warns whoever is root of what a pickled message could do; ours are JSON, and nothing else is accepted.
    warnings.simplefilter("ignore", SecurityWarning)
    # Says at each lost connection that a default will change; orchestrator/messaging.py sets that one by name.
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
    settings = Settings.load()
    app, sending = (
        make_app(settings),
        make_app(settings),
    )  # another one: what it sends is no child of the task that runs
    app.conf.worker_consumer = CONSUMER
    results.apply(app)
    for each in (app, sending):
        sent.apply(each)
    _listen_to_questions_only(parse(settings.urls().messages).where)
    world = World.open(settings, worker=name, publish=celery_sender(sending))
    world.store.check(dev=settings.dev)
    check_messages(settings.urls(), dev=settings.dev)
    register(app, world)
    lifecycle = Lifecycle(store=world.store, name=name, settle=world.owed.settle)
    world.ending = lambda: lifecycle.ending
    broker = connect(parse(settings.urls().messages), connections=1)
    watchdog = Watchdog(
        waiting=lambda: queue_length(broker, settings), release=lifecycle.release, patience=settings.stall
    )
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        pool="threads",
        concurrency=concurrency or settings.concurrency,
        loglevel="WARNING",
        quiet=True,
        # Nobody here asks other workers anything. Without these two it is ready in half the time.
        without_mingle=True,
        without_gossip=True,
    )
    # Celery installs its own signal handlers here. With threads they ignore a second SIGTERM, and nothing bounds the
    # first one.
    worker.install_platform_tweaks = lambda _worker: lifecycle.handle_signals()
    lifecycle.watch()
    watchdog.watch()
    garbage.settle()
    worker.start()
    lifecycle.ended()
    return int(worker.exitcode or os.EX_OK)


# What Flower asks a worker. None of it changes anything, and none tells what a worker holds in memory.
_QUESTIONS = {
    "ping",
    "stats",
    "active_queues",
    "registered",
    "scheduled",
    "active",
    "reserved",
    "revoked",
    "conf",
    "enable_events",  # which they do anyway: a worker sends its events from its start
}


def _listen_to_questions_only(broker: str) -> None:
    """Whoever reaches the broker may ask a worker how it is, and no more: by Celery's remote control he could end it,
    take its queue away, or revoke what it is to do. Of the broker he is told its address: Celery would answer with all
    of a unix socket's URL, and with the options of sentinels, passwords included."""
    for name in set(Panel.data) - _QUESTIONS:
        del Panel.data[name]
    stats = Panel.data["stats"]
    Panel.data["stats"] = lambda state, **given: {**stats(state, **given), "broker": {"address": broker}}


def _keep_logging(**_: object) -> None: ...
