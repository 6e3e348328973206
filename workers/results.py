"""Keeps a step's result in one exchange with Redis, where Celery takes two.

The first success that a task tells stays, as with Celery, which asks for what is there before it writes: a message that
is delivered once more has found its step taken, and what it answers is of no interest to anybody.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend

from orchestrator.store.connecting import KeptPool

_KEEP = """
local was = redis.call('GET', KEYS[1])
local read, told = pcall(cjson.decode, was)  -- it cannot read all that Python writes: half a surrogate pair, for one
if read and type(told) == 'table' and told.status == 'SUCCESS' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""


class Results(RedisBackend):  # type: ignore[misc]  # celery has no types
    """Celery's, but for how it writes."""

    ConnectionPool = KeptPool

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        text = self.encode({**meta, "task_id": task_id})
        self.ensure(self._keep, (self.get_key_for_task(task_id), text))
        return result

    def _keep(self, key: bytes, text: str) -> None:
        self._script(keys=[key], args=[text, int(self.expires)])

    @property
    def _script(self) -> Any:
        found = self.__dict__.get("_kept_script")
        if found is None or found.registered_client is not self.client:
            found = self.__dict__["_kept_script"] = self.client.register_script(_KEEP)
        return found


def apply(app: Celery) -> None:
    """The results of this app's tasks go this way, wherever they are kept in one Redis, or behind TLS. Those that
    sentinels lead to go Celery's."""
    here = f"{__name__}:{Results.__name__}"
    app.loader.override_backends = {**app.loader.override_backends, "redis": here, "rediss": here}
