"""Names that nobody has to make up."""

import secrets

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # in the order of their codes, without i, l, o and u


def new_id(prefix: str, now: float) -> str:
    """Sorts by time, and is unlike any other: the second in seven digits, then twenty random bits."""
    number = (int(now) << 20) | secrets.randbits(20)
    digits = [_DIGITS[(number >> shift) & 31] for shift in range(50, -1, -5)]
    return prefix + "".join(digits)
