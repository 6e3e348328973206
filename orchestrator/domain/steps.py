"""The six steps in order: this is what happens to every server."""

from __future__ import annotations

from typing import Final

STEPS: Final = (
    "create_image",  # an image of A while it serves
    "provision",  # B, bigger, made of it
    "poll_readiness",  # B runs; its disk, memory and permissions are what A had or the fleet file asks for
    "smoke_test",  # B answers like A, asked by address, before any user is sent there
    "swap",  # B in, B proven in the balancer's own view; both serve for the soak
    "drain_old",  # A out, A proven idle, A stopped and kept
)
RETIRE: Final = "retire"  # after `retain`: A terminated, images cleaned by policy

# Redis' priorities, 0 highest: what is nearest to its end goes first, so that servers in flight finish; but for one
# message in four, so that who has been admitted begins (`workers.order`).
PRIORITY: Final = {
    "create_image": 9,
    "provision": 9,
    "poll_readiness": 6,
    "smoke_test": 3,
    "swap": 3,
    "drain_old": 0,
    RETIRE: 9,
}
UNDO_PRIORITY: Final = 0


def following(step: str) -> str | None:
    """The step after this one; None after the last."""
    index = STEPS.index(step) + 1
    return STEPS[index] if index < len(STEPS) else None


def task_name(step: str, *, undo: bool) -> str:
    """The Celery name of a step: the only thing by which this package knows it."""
    return f"tasks.undo_{step}" if undo else f"tasks.{step}"
