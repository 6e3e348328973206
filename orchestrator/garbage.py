"""How Python looks for garbage in a process that runs for weeks."""

from __future__ import annotations

import gc

YOUNG = 20_000  # objects made, and not dropped, between two searches; Python's own 700 is a few messages


def settle() -> None:
    """Leave out of every later search what is loaded by now: modules, classes and settings stay for the process' life,
    and to walk through all of them for each few messages takes longer than many a message."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
