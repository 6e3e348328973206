"""Whether all is there that an upgrade needs, before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ChangeoverError, Unreachable, WaitTimeout
from orchestrator.operations.asking import Asker, Waiter, await_answer, send_request
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.domain.fleet import Fleet

OTHERS = ("valkey", "coordinator", "flower", "page")  # what `up` runs beside workers


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at. `fix` is what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def doctor(
    store: Store,
    ask: Asker,
    fleet: Fleet,
    *,
    dev: bool,
    up: Mapping[str, Any] | None = None,
    waiter: Waiter | None = None,
) -> tuple[Check, ...]:
    """Store, workers, and what a worker sees of the fleet. `up` is what the `up` that runs here has written down of
    itself, if one does. Raises nothing that it can tell as a check."""
    checks: list[Check] = []
    try:
        store.check(dev=dev)
        checks.append(Check(name="Redis", ok=True, detail="answers, keeps what it is told"))
    except ChangeoverError as error:
        checks.append(Check(name="Redis", ok=False, detail=error.message, fix=error.next))
        if isinstance(error, Unreachable):
            return tuple(checks)
    workers = store.workers()
    started = {name: {"pid": pid} for name, pid in (up or {}).get("processes", {}).items() if name not in OTHERS}
    if not workers:
        none = Check(name="workers", ok=False, detail="none is alive", fix="changeover up, or changeover worker")
        return (*checks, _silent(started, up, told="started here") if started else none)
    checks.append(Check(name="workers", ok=True, detail=", ".join(sorted(workers))))
    if hang := {name: info for name, info in started.items() if name not in workers}:
        checks.append(_silent(hang, up, told="started here"))
    frozen = store.frozen()
    if frozen is not None:
        checks.append(
            Check(name="freeze", ok=False, detail=f"everything is frozen: {frozen}", fix="changeover unfreeze")
        )
    try:
        answer = await_answer(store, "doctor", send_request(store, ask, "doctor", fleet), waiter or Waiter())
    except ChangeoverError as error:
        if isinstance(error, WaitTimeout) and not store.workers():  # all of them fell silent while we waited
            return (*(c for c in checks if c.name != "workers"), _silent(workers, up, told="registered"))
        again = error.next.startswith("changeover doctor")  # which is where we are
        return (*checks, Check(name="providers", ok=False, detail=error.message, fix="" if again else error.next))
    checks += [
        Check(name=str(c["name"]), ok=bool(c["ok"]), detail=str(c.get("detail", "")), fix=str(c.get("fix", "")))
        for c in answer["checks"]
    ]
    return tuple(checks)


def needed_rights(store: Store, ask: Asker, fleet: Fleet, waiter: Waiter | None = None) -> Sequence[Mapping[str, Any]]:
    """What the credentials that workers use for this fleet have to allow, as its providers declare it: `who` needs
    which `policy`."""
    answer = await_answer(store, "doctor", send_request(store, ask, "doctor", fleet), waiter or Waiter())
    return [{"who": str(each["who"]), "policy": each["policy"]} for each in answer.get("policies", ())]


def _silent(workers: Mapping[str, Mapping[str, Any]], up: Mapping[str, Any] | None, *, told: str) -> Check:
    """Workers that hang. A start of anything else beside them would be refused, and an end of everything mends less."""
    names = ", ".join(f"{name} (process {info.get('pid', '?')})" for name, info in sorted(workers.items()))
    logs = f"{up['logs']}/{min(workers)}.log" if up else "the log of each, on its host"
    pids = " ".join(str(info["pid"]) for _, info in sorted(workers.items()) if "pid" in info)
    return Check(
        name="workers",
        ok=False,
        detail=f"{names}: {told}, and no answer",
        fix=f"less {logs}; then kill -9 {pids or 'them'}: `up` starts them again, and no server is touched",
    )
