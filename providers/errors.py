"""What can go wrong at a provider: a closed list. Vendor errors stop at `providers/clients/`, which map to these.

ProviderError
├── Throttled          asked too often; nothing happened; come back after `retry_after` seconds
├── Transient          it did not answer, or answered 5xx; `ambiguous` says whether the effect may have happened
├── NotYetVisible      it must exist (we made it) but does not show yet
├── NotFound           it is not there, and nobody says that it should be
├── NoCapacity         refused for now: this size, zone or type has no room; nothing was made
├── QuotaExceeded      refused for the whole account: nobody should ask again before a person raised the quota
├── Conflict           the key is taken by something with other parameters; never adopt it
├── GuardRefused       the resource itself refused, since obeying would hurt users; nothing changed
├── Busy               another writer holds the resource; nothing happened; try again soon
├── Unauthorized       credentials are missing, wrong or expired
└── Refused            anything else that will be refused again: a definite no; nothing was made
"""

from __future__ import annotations

from math import isfinite

LONGEST_PAUSE = 300.0  # seconds that are believed of what a vendor asks for
USUAL_PAUSE = 60.0  # seconds for one that says no number


class ProviderError(Exception):
    """Base of the list. `code` and `request_id` are the vendor's own, for the audit; None where it gave none."""

    def __init__(self, message: str, *, code: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class Throttled(ProviderError):
    """`retry_after` in seconds, as the vendor says, within five minutes: one wrong header must not stop a server for
    years."""

    def __init__(
        self, message: str, *, retry_after: float = 1.0, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.retry_after = min(max(retry_after, 0.0), LONGEST_PAUSE) if isfinite(retry_after) else USUAL_PAUSE


class Transient(ProviderError):
    def __init__(
        self, message: str, *, ambiguous: bool, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.ambiguous = ambiguous


class NotYetVisible(ProviderError): ...


class NotFound(ProviderError): ...


class NoCapacity(ProviderError): ...


class QuotaExceeded(ProviderError): ...


class Conflict(ProviderError): ...


class GuardRefused(ProviderError): ...


class Busy(ProviderError): ...


class Unauthorized(ProviderError): ...


class Refused(ProviderError): ...
