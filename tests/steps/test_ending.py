"""A worker that is told to end finishes the call that it is in, and no more; another goes on at once."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import operations
from tests.support.runner import Runner, running


def told_after_one_call(runner: Runner) -> list[str]:
    """In the first message of each step the worker is told to end, during its first call. Which ones that were."""
    told: list[str] = []
    ending = False

    def crash(point: str) -> None:
        nonlocal ending
        step, _, at = point.partition(".")
        if at == "claimed":
            ending = False
        if at.startswith("before ") and step not in told:
            told.append(step)
            ending = True

    runner.crash = crash
    runner.world.ending = lambda: ending
    return told


@pytest.mark.parametrize("back", [False, True], ids=["forward", "undo"])
def test_told_to_end_in_any_step_it_leaves_the_rest_to_another_at_once(back: bool) -> None:
    with running(["web-1"]) as runner:
        told = told_after_one_call(runner)
        ended: list[tuple[str, float]] = []
        deliver = runner.deliver

        def watched(messages: Any) -> Any:
            ran = deliver(messages)
            row = runner.store.row(runner.rollout, "web-1")
            assert row is not None and not row.owner, "its lease is given back"
            if row.upgrade.wait is not None and "told to end" in row.upgrade.wait.reason:
                assert ran is not None and not ran.goes_on
                ended.append((messages[0]["task"], row.upgrade.wait.at - runner.clock()))
            return ran

        runner.deliver = watched  # type: ignore[method-assign]  # to look after each message
        if back:
            runner.until(lambda: runner.upgrade("web-1").has_begun("drain_old"))
            operations.rollback(runner.store, runner.rollout, actor="anna")
        runner.finish()
        assert runner.upgrade("web-1").state == ("rolled_back" if back else "upgraded")
        steps = [task.removeprefix("tasks.") for task, _ in ended]
        assert len(told) >= 6 and steps, (told, steps)  # most steps make one call a message, and are done with it
        assert not back or any(step.startswith("undo_") for step in steps), steps
        assert all(left <= 0.01 for _, left in ended), "it is due at once"
        assert runner.made_twice() == []
