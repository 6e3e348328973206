"""The Celery app's configuration, shared by who sends and who works. A message is a hint; the record is the truth."""

from __future__ import annotations

from typing import Any

from celery import Celery

from orchestrator.addresses import parse
from orchestrator.settings import Settings

# Seconds. Only a backstop: the lease recovers faster, and no task holds a message for longer than its bounded body.
VISIBILITY_TIMEOUT = 600
PRIORITIES = [0, 3, 6, 9]  # 0 is the highest


def make_app(settings: Settings) -> Celery:
    """A Celery app that can send every task by name; the worker adds the bodies."""
    urls = settings.urls()
    broker, broker_tls, broker_options = parse(urls.messages).for_celery()
    backend, backend_tls, backend_options = parse(urls.results).for_celery()
    app = Celery("changeover", broker=broker, backend=backend, set_as_current=False)
    conf = configuration(settings, tcp_results="+socket:" not in backend)
    conf["broker_transport_options"] |= broker_options
    conf["result_backend_transport_options"] |= backend_options
    # A setting that is None is not the same as one that is not there.
    conf |= {"broker_use_ssl": broker_tls} if broker_tls else {}
    conf |= {"redis_backend_use_ssl": backend_tls} if backend_tls else {}
    app.conf.update(conf)
    return app


def queue_length(client: Any, settings: Settings) -> int:
    """How many messages wait to be taken. `client` is of the broker's Redis; a queue is a list a priority there."""
    pipeline = client.pipeline(transaction=False)
    for priority in PRIORITIES:
        pipeline.llen(settings.queue + (f"\x06\x16{priority}" if priority else ""))
    return sum(pipeline.execute())


def configuration(settings: Settings, *, tcp_results: bool) -> dict[str, Any]:
    """The settings of both ends. `tcp_results`: whether the result backend is reached by TCP."""
    sockets = {
        "socket_timeout": 30,  # above BRPOP's second; publishing would else wait for ever on a half-open link
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
    return {
        "task_default_queue": settings.queue,
        # JSON alone: a message can never carry code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        # The chain travels inside the message: acknowledge it after the body, or a killed worker takes the rest along.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # A body that raised has committed its reason to the record: delivering it again would only repeat it.
        "task_acks_on_failure_or_timeout": True,
        # Small results, for Flower and for people; nothing reads them for truth.
        "task_ignore_result": False,
        "result_expires": 7 * 86400,
        "result_extended": False,
        # One message in hand a thread: what is prefetched counts against the visibility timeout.
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": settings.concurrency,
        "worker_pool": "threads",  # the work is waiting for networks; a thread costs less than a process
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "priority_steps": PRIORITIES,
            "queue_order_strategy": "priority",
            "unacked_restore_interval": 5,  # the default sweeps every 100 s or so
            "unacked_mutex_expire": 30,  # a worker killed inside the sweep would block it for 300 s
            **sockets,
        },
        "visibility_timeout": VISIBILITY_TIMEOUT,  # the shortest of all on a broker wins: keep them equal
        "result_backend_transport_options": {"visibility_timeout": VISIBILITY_TIMEOUT},
        "redis_socket_timeout": 30,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": tcp_results,  # a unix socket takes no such option
        "redis_backend_health_check_interval": 25,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # the default gives up after 100 tries
        # None at all costs 2.7 times the CPU; with fewer than ten, Flower's own questions keep it from listening.
        "broker_pool_limit": max(10, settings.concurrency),
        "worker_send_task_events": True,  # Flower lives on events
        "task_send_sent_event": True,
        # That a step runs is an event, and in its record: a result for it costs as much as the last one.
        "task_track_started": False,
        "worker_disable_rate_limits": True,  # limits are shared buckets, not one a process
        "worker_eta_task_limit": 1000,  # a fuse: nothing here uses countdown or eta
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "task_inherit_parent_priority": False,  # every step has its own
        "task_publish_retry": True,
        "task_publish_retry_policy": {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.3, "interval_max": 1},
        "task_create_missing_queues": True,
        "timezone": "UTC",
        "enable_utc": True,
    }
