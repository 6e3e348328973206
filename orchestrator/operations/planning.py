"""From a fleet file to a rollout: the plan that a person agreed to, and the rollout that is made of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator import tracing
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import BadInput, Conflict, Locked, NotFound, PlanMoved
from orchestrator.ids import new_id
from orchestrator.operations.asking import Asker, Waiter, await_survey, request_survey
from orchestrator.operations.looking import LOST
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.domain.fleet import Fleet
    from orchestrator.domain.plan import Plan

KEEP_PLANS = 30 * 86400.0


def plan(store: Store, ask: Asker, fleet: Fleet, waiter: Waiter | None = None) -> Plan:
    """What would happen, computed from the world as it is now, and saved under its id."""
    from orchestrator.domain.plan import make_plan

    made = make_plan(fleet, await_survey(store, request_survey(store, ask, fleet), waiter))
    store.put_document("plan", made.id, asdict(made), ttl=KEEP_PLANS)
    return made


def saved_plan(store: Store, id: str) -> Plan:
    from orchestrator.domain.plan import plan_from

    found = store.document("plan", id)
    if found is None:
        raise NotFound(f"there is no plan {id}", next="changeover plan FILE")
    return plan_from(found)


def apply(
    store: Store,
    ask: Asker,
    fleet: Fleet,
    *,
    agreed: Plan | None,
    actor: str,
    id: str = "",
    waiter: Waiter | None = None,
) -> Rollout:
    """The rollout is created, with a lock on every server; coordinators admit from then on. The world is read anew.

    `agreed` is the plan that somebody said yes to. With an `id` that exists, that rollout is returned. Raises
    `PlanMoved` when the world or the file is no longer what the plan saw, `Conflict` for blockers, `Locked` when
    another rollout owns one of the servers; in each case nothing was created.
    """
    if id and (there := store.rollout(id)) is not None:
        return there
    fresh = plan(store, ask, fleet, waiter)
    if agreed is not None and agreed.hash != fresh.hash:
        raise moved(agreed, fresh)
    refuse_blockers(fresh)
    id = id or new_id("r", store.now())
    with tracing.beginning(id, fleet=fleet.fleet, plan=fresh.id):
        return create(store, fleet, fresh, actor=actor, id=id)


def moved(agreed: Plan, fresh: Plan) -> PlanMoved:
    from orchestrator.domain.plan import differences

    lines = differences(agreed.survey, fresh.survey)
    if agreed.fleet != fresh.fleet:
        lines.insert(0, "the fleet file is another one, or was changed")
    told = "".join(f"\n  {line}" for line in lines[:20])
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return PlanMoved(
        f"plan {agreed.id} no longer holds:{told}{more}",
        traffic="unchanged; nothing was created",
        next="changeover plan FILE",
    )


def refuse_blockers(plan: Plan) -> None:
    if not plan.blockers:
        return
    told = "".join(f"\n  {line}" for line in plan.blockers[:20])
    more = f"\n  and {len(plan.blockers) - 20} more" if len(plan.blockers) > 20 else ""
    raise Conflict(
        f"plan {plan.id} cannot be applied:{told}{more}",
        traffic="unchanged; nothing was created",
        next=LOST if plan.survey.strangers else "changeover plan FILE",
    )


def create(store: Store, fleet: Fleet, plan: Plan, *, actor: str, id: str = "") -> Rollout:
    """The rollout of this plan, its upgrades and its locks. Raises `Locked`, and `Conflict` where another plan was
    about to become the rollout of that id."""
    from orchestrator.lanes import remember

    now = store.now()
    rollout = rollout_of(fleet, plan, id=id or new_id("r", now), now=now, actor=actor)
    domains = {server.name: server.domain or "" for server in fleet.servers}
    upgrades = [
        Upgrade(rollout=rollout.id, server=name, wave=wave, domain=domains[name])
        for wave, names in enumerate(plan.waves)
        for name in names
    ]
    # The spec first: whoever finds the rollout finds what it is about.
    mine = store.put_document("spec", rollout.id, {"plan": asdict(plan)})
    if not mine and (there := store.rollout(rollout.id)) is not None:
        return there
    if not mine and (spec := store.document("spec", rollout.id)) is not None and spec["plan"]["hash"] != plan.hash:
        raise Conflict(
            f"rollout {rollout.id} is being created from plan {spec['plan']['id']}, or was about to be",
            traffic="unchanged; nothing was created",
            next="take another --id",
        )
    try:
        made = store.create(rollout, upgrades, locks=fleet.locks)
    except (Locked, BadInput):  # nothing has come of it, and nothing will
        if mine:
            store.forget_document("spec", rollout.id)
        raise
    remember(store, fleet, rollout.id)
    store.wake()
    return made


def rollout_of(fleet: Fleet, plan: Plan, *, id: str, now: float, actor: str) -> Rollout:
    policy = fleet.rollout
    return Rollout(
        id=id,
        plan=plan.id,
        fleet=fleet.fleet,
        created_at=now,
        created_by=actor,
        waves=plan.waves,
        max_in_flight=policy.max_in_flight,
        allowed_failures=policy.budget.allowed(len(fleet.servers)),
        bake=policy.bake,
        on_abort=policy.on_abort,
        approvals=policy.asked_before(len(plan.waves)),
        windows=policy.windows.decided_by() if policy.windows else None,
    )
