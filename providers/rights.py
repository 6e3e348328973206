"""What credentials have to allow, as each provider declares it, and the policies that follow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Statement = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rights:
    """`who` needs them: a role, or whoever the workers are. `statements` are in IAM's language, each with a `Sid`."""

    who: str
    statements: Sequence[Statement]


def policies(needed: Iterable[Rights]) -> list[Mapping[str, Any]]:
    """One policy for each of those who need any, with what several providers declare alike said once: `who`, and
    `policy` as IAM takes it."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for rights in needed:
        mine = found.setdefault(rights.who, {})
        for statement in rights.statements:
            about = {name: value for name, value in statement.items() if name not in ("Sid", "Action")}
            known = mine.setdefault(json.dumps(about, sort_keys=True), {"Sid": statement["Sid"], "Action": [], **about})
            known["Action"] = sorted({*known["Action"], *statement["Action"]})
    return [
        {"who": who, "policy": {"Version": "2012-10-17", "Statement": [_ordered(each) for each in mine.values()]}}
        for who, mine in found.items()
        if mine
    ]


def _ordered(statement: Statement) -> Statement:
    return {name: statement[name] for name in ("Sid", "Effect", "Action", "Resource", "Condition") if name in statement}
