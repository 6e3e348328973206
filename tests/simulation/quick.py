"""What takes the time of a simulation without belonging to it, done in another way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def without_collector() -> Iterator[None]:
    """A simulation makes much and keeps it to its end: looking for garbage meanwhile is a fifth of its time. Whoever
    plays many enters this round all of them: then what one has left goes before the next, and is looked at once."""
    was = gc.isenabled()
    gc.disable()
    if not was:
        gc.collect(0)
    try:
        yield
    finally:
        if was:
            gc.enable()


def replace(record: T, /, **changes: Any) -> T:
    """`dataclasses.replace` of a record that computes nothing when it is made, in a fifth of the time."""
    made = object.__new__(type(record))
    fields = vars(made)
    fields.update(vars(record))
    if not changes.keys() <= fields.keys():
        raise TypeError(f"{type(record).__name__} has no {', '.join(changes.keys() - fields.keys())}")
    fields.update(changes)
    return made
