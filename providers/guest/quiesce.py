"""Two commands round the moment of an image, run by a shell inside the server that it is made of.

The server releases itself: a watchdog of its own runs before anything is frozen, and runs `after` when the time is
over, whoever has died meanwhile. What is on is a file, taken away once `after` has ended well: until then it is tried
again, and from then on by nobody. The files lie where a boot forgets them, as it forgets what was frozen.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from providers.errors import Refused, Transient

COMMAND_SECONDS = 8  # in which either command has to end
ANSWER = "changeover-quiesce"


@dataclass(frozen=True, kw_only=True)
class Hook:
    """Words of programs, run without a shell of their own. `seconds` after `before` has begun, `after` runs."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    seconds: float


# What is on: on.KEY.SERIAL. Its watchdog runs: dog.KEY.SERIAL. Its time is over: late.KEY.SERIAL. Released in time, and
# by order: held.KEY.
_DOG = r"""
d=$1 x=$2 left=$3; shift 3
: >"$d/dog.$x"
while [ "$left" -gt 0 ] && [ -e "$d/on.$x" ]; do sleep 1; left=$((left - 1)); done
if [ -e "$d/on.$x" ]; then : >"$d/late.$x"; fi
while [ -e "$d/on.$x" ]; do
  if timeout -k 1 SECONDS "$@"; then rm -f "$d/on.$x"; else sleep 1; fi
done
rm -f "$d/dog.$x" "$d/late.$x"
"""
_COMMON = r"""
d=${CHANGEOVER_RUN:-/run/changeover}
say() { printf '%s %s\n' ANSWER "$*"; }
if ! mkdir -m 700 -p "$d"; then say refused "there is no place for notes at $d"; exit 1; fi
before() { timeout -k 1 SECONDS BEFORE; }
after() { timeout -k 1 SECONDS AFTER; }
thaw() {
  for on in "$d"/on.*; do
    [ -e "$on" ] || continue
    if ! after >"$d/said" 2>&1 </dev/null && [ -e "$on" ]; then return 1; fi
    rm -f "$on"
  done
}
stuck() { say refused "what follows the image failed, and is tried again: $(tail -n 1 "$d/said")"; exit 1; }
"""
_QUIESCE = r"""
if [ "$(date +%s)" -gt LAST ]; then say refused "it came too late, by the clock there: $(date)"; exit 1; fi
thaw || stuck
rm -f "$d"/held.*
x=KEY.$$-$(date +%s)
: >"$d/on.$x"
setsid sh -c DOG dog "$d" "$x" LEFT AFTER </dev/null >/dev/null 2>&1 &
tries=0
until [ -e "$d/dog.$x" ]; do
  tries=$((tries + 1))
  if [ "$tries" -gt 80 ]; then rm -f "$d/on.$x"; say refused "no watchdog runs there: it needs setsid"; exit 1; fi
  sleep 0.1
done
if ! before >"$d/said" 2>&1 </dev/null; then
  why=$(tail -n 1 "$d/said")
  thaw || stuck
  say refused "what precedes the image failed: $why"
  exit 1
fi
if [ ! -e "$d/on.$x" ] || [ -e "$d/late.$x" ]; then
  thaw || stuck
  say refused "what precedes the image took all the time that there was"
  exit 1
fi
say on
"""
_RELEASE = r"""
held=over
if [ -e "$d/held."KEY ]; then held=held; fi
for on in "$d/on."KEY.*; do
  x=${on##*/on.}
  if [ -e "$on" ] && [ ! -e "$d/late.$x" ]; then held=held; fi
done
thaw || stuck
if [ $held = held ]; then : >"$d/held."KEY; fi
say $held
"""


def quiesce_script(key: str, hook: Hook, *, by: float) -> str:
    """Says `on` once `before` has ended well; or that it was `refused`, with the reason, and nothing is frozen."""
    return _filled(_COMMON + _QUIESCE.replace("LAST", str(math.ceil(by))), key, hook)


def release_script(key: str, hook: Hook) -> str:
    """Says `held` where what that key has begun was on until now, or `over`; `refused` if `after` does not end well."""
    return _filled(_COMMON + _RELEASE, key, hook)


def word_of(id: str, output: str) -> str:
    """What a script said inside that server, unless it was refused, or did not come to its end."""
    for line in reversed(output.splitlines()):
        name, _, rest = line.partition(" ")
        word, _, why = rest.partition(" ")
        if name == ANSWER and word == "refused":
            raise Refused(f"{id}: {why}")
        if name == ANSWER:
            return word
    raise Transient(f"{id} did not say what became of its quiesce command", ambiguous=True)


def _filled(script: str, key: str, hook: Hook) -> str:
    """A word is quoted for the shell, and never part of a program."""
    seconds = str(COMMAND_SECONDS)
    told = {
        "DOG": shlex.quote(_DOG.replace("SECONDS", seconds)),
        "LEFT": str(math.ceil(hook.seconds)),
        "SECONDS": seconds,
        "ANSWER": ANSWER,
        "KEY": shlex.quote(key or "nobody"),
    }
    for name, text in told.items():
        script = script.replace(name, text)
    # Last, since nobody knows what they hold.
    before, after = shlex.join(hook.before), shlex.join(hook.after)
    return after.join(before.join(part.split("BEFORE")) for part in script.split("AFTER"))
