"""How to talk to each world. A provider never hears the word "upgrade".

A provider is found by role and name through the entry points `changeover.<role>`, so that a package of
somebody else's can add one. Its constructor takes one mapping: the `provider` part of the fleet file
(for traffic: the `traffic` part, with `pools`, each with its `backend` and `port`). References to secrets have been
resolved by the worker that makes it: it keeps them to itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal

from providers.errors import Refused

Role = Literal["compute", "traffic", "guest", "probe"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """Who a created thing is: made by key, later found by key.

    `token` is 64 hex digits and unique to one attempt at one effect. `name` is `co-` and the token's first 40
    digits. `tags` go on the resource at creation, and `changeover:managed=1` is always among them.
    """

    token: str
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What a provider can do, so that a plan can say what it cannot.

    `batch`: how many ids one look takes. `additive`: old and new can serve side by side (a balancer), or the new one
    takes the old one's place in one go (a name with one address, an elastic address). `counts_sessions`: it sees the
    requests in flight at a server that leaves; where not, the server itself is asked (`Facts.connections`). `drains`:
    who leaves ends what it has begun; where not, that is cut the moment another one takes its place, and no session is
    left. `prepares`: a pool has to be prepared for a member (`Traffic.prepare`). `takes_turns`: one writer at a time
    changes what is in a lane; where not, each change is compared with what it was decided on, and several may go
    together. `decides_together`: threads of one process may change a lane in one turn, since the provider decides for
    all of them on one look. `restores_at_once`: a member that drains serves again the moment it is restored; where not,
    it has to be proven anew. `poll`: seconds between looks that may tell anything new, if that takes longer than at a
    balancer. `member_tag`: the tag by which it knows a member's name; a server that has it from its beginning need not
    be given it. `size_enforced`: whether memory and disk limits hold.
    """

    batch: int = 100
    additive: bool = True
    counts_sessions: bool = True
    drains: bool = True
    prepares: bool = False
    takes_turns: bool = True
    decides_together: bool = False
    restores_at_once: bool = True
    poll: float = 0.0
    member_tag: str = ""
    size_enforced: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a doctor has looked at. `fix`: what to do about it if it is not well."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def find(role: Role, name: str, settings: Mapping[str, Any]) -> Any:
    """The provider of that role and name, ready to use. Raises `Refused` for an unknown name, with the known ones."""
    known = {point.name: point for point in entry_points(group=f"changeover.{role}")}
    if name not in known:
        raise Refused(f"no {role} provider is called {name!r}; installed: {', '.join(sorted(known)) or 'none'}")
    return known[name].load()(settings)
