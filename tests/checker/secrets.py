"""I10: what was planted as a secret is in no file, in no usual disguise."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from urllib.parse import quote

from tests.checker.evidence import Evidence, Violation


def none_told(e: Evidence) -> Iterator[Violation]:
    """I10."""
    disguises = {secret: _disguises(secret) for secret in e.secrets}
    for path in sorted(e.folder.rglob("*")):
        if not path.is_file() or path == e.folder / "secrets.json":
            continue
        content = path.read_bytes()
        for secret, forms in disguises.items():
            place = next((at for form in forms if (at := content.find(form)) >= 0), -1)
            if place >= 0:
                line = content.count(b"\n", 0, place) + 1
                yield Violation(
                    id="I10",
                    where=f"{path.relative_to(e.folder)}:{line}",
                    says=f"the secret that begins with {secret[:4]!r} is written there",
                )


def _disguises(secret: str) -> set[bytes]:
    """As it is, in JSON, in a URL, in hex, and in base64 wherever it may begin in the encoded text."""
    raw = secret.encode()
    found = {raw, json.dumps(secret)[1:-1].encode(), quote(secret, safe="").encode(), raw.hex().encode()}
    for shift in range(3):
        skipped = (0, 2, 3)[shift]  # characters that depend on what stands before it
        encoded = base64.b64encode(b"\0" * shift + raw)[skipped:]
        whole = len(encoded.rstrip(b"=")) - (0 if (shift + len(raw)) % 3 == 0 else 1)
        found.add(encoded[:whole])
    return {form for form in found if len(form) >= 6}
