"""Against a real HAProxy: nobody's request fails while servers come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from providers.clients import haproxy_config
from providers.errors import Busy, Conflict, GuardRefused, NotFound, ProviderError, Refused, Transient
from providers.traffic import Guard, Member, Traffic
from providers.traffic.haproxy import HAProxyTraffic
from tests.support.haproxy import (
    CHECK,
    NO_GUARD,
    HAProxy,
    Loop,
    Site,
    Users,
    Visit,
    bring_in,
    stage,
    take_out,
    until,
)

WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
Stage = tuple[HAProxy, dict[str, Site], Loop]


@pytest.fixture
def pair() -> Iterator[Stage]:
    with stage("a", "c", "B") as all_of_it:
        yield all_of_it


@contextlib.contextmanager
def users_of(haproxy: HAProxy, loop: Loop) -> Iterator[Users]:
    """Users before, during and after; not one of their requests may fail."""
    users = Users(loop, haproxy.users)
    try:
        users.go_on()
        yield users
        users.go_on()
    finally:
        users.stop()
    assert users.failures == []


def held_at(haproxy: HAProxy, site: Site, path: str = "/slow", headers: str = "") -> tuple[Visit, list[Visit]]:
    """A request in flight at this server, and those that went elsewhere on the way."""
    others: list[Visit] = []
    while True:
        before, visit = site.served, Visit(haproxy.users)
        visit.ask(path, headers=headers)
        with contextlib.suppress(AssertionError):
            until(lambda before=before: site.served > before, seconds=0.3)  # type: ignore[misc]  # bound now
            return visit, others
        others.append(visit)
        assert len(others) < 10


# In and out


def test_a_swap_under_constant_traffic_fails_no_request(pair: Stage) -> None:
    haproxy, sites, loop = pair
    traffic: Traffic = haproxy.traffic()
    with users_of(haproxy, loop) as users:
        states = [view.state for view in bring_in(traffic, "web", sites["B"].member)]
        assert states[0] == "joining"
        assert set(states) <= {"joining", "serving"}
        users.go_on()
        assert users.answers["B"]
        out = take_out(traffic, "web", "a", guard=Guard(min_healthy=1, serving=("B",)))
        assert out[-1] == "absent"
        sites["a"].stop()


def test_nothing_but_server_lines_of_the_backend_is_written(pair: Stage) -> None:
    haproxy, sites, _ = pair
    odd = haproxy.config.read_bytes().replace(b"# kept", b"\t# \xff\xfe \r\n# kept")
    haproxy.config.write_bytes(odd)
    haproxy.config.chmod(0o640)
    traffic = haproxy.traffic()
    bring_in(traffic, "web", sites["B"].member)
    take_out(traffic, "web", "a")
    b, line = sites["B"], f"  server a {sites['a'].address}:{sites['a'].port} {CHECK}\n"
    last = f"  server c {sites['c'].address}:{sites['c'].port} {CHECK}\n"
    expected = odd.replace(line.encode(), b"").replace(
        last.encode(), f"{last}  server B {b.address}:{b.port} {CHECK}\n".encode()
    )
    assert haproxy.config.read_bytes() == expected
    assert haproxy.config.stat().st_mode & 0o777 == 0o640


def test_the_file_says_disabled_until_the_new_server_is_up(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic, b = haproxy.traffic(), sites["B"]
    b.healthy = False
    assert traffic.add("web", b.member).state == "joining"
    assert haproxy.line("B") == f"server B {b.address}:{b.port} disabled {CHECK}"
    haproxy.restart()
    assert haproxy.server("B").maintenance
    b.healthy = True
    bring_in(traffic, "web", b.member)
    assert haproxy.line("B") == f"server B {b.address}:{b.port} {CHECK}"


def test_asking_again_for_a_ready_server_never_stops_its_traffic(pair: Stage) -> None:
    haproxy, sites, loop = pair
    traffic = haproxy.traffic()
    bring_in(traffic, "web", sites["B"].member)
    for name in ("a", "c"):
        traffic.remove("web", name, guard=Guard(min_healthy=0, serving=("B",)), cut=False)
    with users_of(haproxy, loop) as users:
        for _ in range(20):
            assert traffic.add("web", sites["B"].member).state == "serving"
            assert haproxy.server("B").up
        users.go_on()


# With `fall 1` a server that leaves maintenance looks wholly healthy at once.
@pytest.mark.parametrize("fall", [1, 2])
@pytest.mark.parametrize("before", ["state maint", "state drain"])
def test_a_dead_server_is_not_let_in_on_remembered_results(before: str, fall: int) -> None:
    with stage("a", "B", server=f"check inter 200ms fastinter 50ms rise 2 fall {fall}") as (haproxy, sites, _):
        traffic, b = haproxy.traffic(), sites["B"]
        bring_in(traffic, "web", b.member)
        haproxy.wire.set_server("web", "B", before)
        b.stop()
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            assert traffic.add("web", b.member).state == "joining"
            assert not haproxy.server("B").ready
        b.start()
        bring_in(traffic, "web", b.member)


def test_a_server_that_serves_unproven_proves_itself_if_another_is_up(pair: Stage) -> None:
    haproxy, sites, loop = pair
    b = sites["B"].member
    haproxy.wire.add_server("web", "B", f"{b.address}:{b.port}", tuple(CHECK.split()))
    haproxy.wire.set_server("web", "B", "state ready")
    assert haproxy.server("B").status == "no check"
    with users_of(haproxy, loop):
        assert haproxy.traffic().add("web", b).state == "joining"
        bring_in(haproxy.traffic(), "web", b)


def test_another_address_under_the_same_name_is_a_conflict(pair: Stage) -> None:
    haproxy, sites, _ = pair
    before = haproxy.config.read_bytes()
    with pytest.raises(Conflict, match=sites["B"].address):
        haproxy.traffic().add("web", Member(name="a", address=sites["B"].address, port=sites["B"].port))
    assert haproxy.config.read_bytes() == before


def test_a_check_that_proves_only_an_open_port_is_refused() -> None:
    with stage("a", "B", check="") as (haproxy, sites, _):
        traffic = haproxy.traffic()
        traffic.add("web", sites["B"].member)
        until(lambda: haproxy.server("B").status == "DRAIN")
        with pytest.raises(Refused, match="option httpchk"):
            traffic.add("web", sites["B"].member)


# Out


def test_the_last_server_that_is_up_is_never_drained(pair: Stage) -> None:
    haproxy, sites, _ = pair
    sites["c"].healthy = False
    until(lambda: haproxy.server("c").status.startswith("DOWN"))
    with pytest.raises(GuardRefused, match="last one"):
        haproxy.traffic().remove("web", "a", guard=NO_GUARD, cut=True)
    assert haproxy.server("a").up


def test_a_guard_that_breaks_during_the_drain_keeps_the_old_server(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic = haproxy.traffic()
    guard = Guard(min_healthy=1, serving=("c",))
    assert traffic.remove("web", "a", guard=guard, cut=False).state == "draining"
    sites["c"].healthy = False
    until(lambda: haproxy.server("c").status.startswith("DOWN"))
    with pytest.raises(GuardRefused, match="c DOWN"):
        traffic.remove("web", "a", guard=guard, cut=True)
    assert traffic.restore("web", sites["a"].member).state == "serving"


def test_a_long_request_is_waited_for(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic, a = haproxy.traffic(), sites["a"]
    visit, others = held_at(haproxy, a)
    for _ in range(3):
        view = traffic.remove("web", "a", guard=NO_GUARD, cut=False)
        assert (view.state, view.sessions, view.actionable) == ("draining", 1, False)
    assert not traffic.idle([("web", "a")])["web", "a"].actionable
    a.release()
    assert visit.answer() == (200, "a")
    until(lambda: traffic.idle([("web", "a")])["web", "a"].actionable)
    assert take_out(traffic, "web", "a") == ["absent"]
    for one in (visit, *others):
        one.close()


def test_a_websocket_goes_on_until_it_is_cut(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic = haproxy.traffic()
    visit, others = held_at(haproxy, sites["a"], "/ws", WEBSOCKET)
    assert visit.answer()[0] == 101
    assert traffic.remove("web", "a", guard=NO_GUARD, cut=False).state == "draining"
    assert visit.say("still here") == "still here"
    assert take_out(traffic, "web", "a", cut=True)[-1] == "absent"
    assert visit.answer()[0] == 0
    for one in (visit, *others):
        one.close()


def test_a_quiet_time_waits_for_the_last_request_to_be_old(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic = haproxy.traffic(quiet=1)
    visit, others = held_at(haproxy, sites["a"], "/")
    assert visit.answer() == (200, "a")
    ended = time.monotonic()
    assert take_out(traffic, "web", "a") == ["draining", "absent"]
    assert time.monotonic() - ended > 0.99
    for one in (visit, *others):
        one.close()


def test_a_user_with_a_cookie_is_served_by_the_old_server_and_then_by_another() -> None:
    with stage("a", "c", "B", backend="  cookie SRV insert indirect nocache\n", server=f"{CHECK} cookie x") as (
        haproxy,
        sites,
        _,
    ):
        traffic = haproxy.traffic()
        haproxy.config.write_text(haproxy.config.read_text().replace("cookie x", "cookie y", 1))
        haproxy.restart()
        haproxy.all_up()
        bring_in(traffic, "web", sites["B"].member)
        assert haproxy.line("B").endswith("cookie B")
        visit = Visit(haproxy.users)
        visit.ask("/", headers="Cookie: SRV=y\r\n")
        assert visit.answer() == (200, "a")
        traffic.remove("web", "a", guard=NO_GUARD, cut=False)
        visit.ask("/", headers="Cookie: SRV=y\r\n")
        assert visit.answer() == (200, "a")
        assert take_out(traffic, "web", "a", cut=True)[-1] == "absent"
        visit.ask("/", headers="Cookie: SRV=y\r\n")
        assert visit.answer()[1] in ("B", "c")
        bring_in(traffic, "web", sites["a"].member, verb="restore")
        assert haproxy.line("a").endswith("cookie y"), "it comes back as it was"
        visit.ask("/", headers="Cookie: SRV=B\r\n")
        assert visit.answer() == (200, "B")
        visit.close()


def test_a_server_taken_out_comes_back_proven(pair: Stage) -> None:
    haproxy, sites, loop = pair
    traffic = haproxy.traffic()
    with users_of(haproxy, loop):
        traffic.remove("web", "a", guard=NO_GUARD, cut=False)
        assert traffic.restore("web", sites["a"].member).state == "serving"
        take_out(traffic, "web", "a")
        sites["a"].healthy = False
        assert traffic.restore("web", sites["a"].member).state == "joining"
        sites["a"].healthy = True
        bring_in(traffic, "web", sites["a"].member, verb="restore")


def test_after_a_reload_in_a_drain_the_old_process_is_waited_for(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic, a = haproxy.traffic(), sites["a"]
    visit, others = held_at(haproxy, a)
    traffic.remove("web", "a", guard=NO_GUARD, cut=False)
    haproxy.reload()
    haproxy.all_up()

    def step() -> Any:
        return traffic.remove("web", "a", guard=NO_GUARD, cut=False)

    until(lambda: "old process" in step().detail)
    assert step().state == "draining"
    assert "old process" in traffic.idle([("web", "a")])["web", "a"].detail
    a.release()
    assert visit.answer() == (200, "a")
    for one in (visit, *others):
        one.close()
    haproxy.end_old()
    assert take_out(traffic, "web", "a")[-1] == "absent"


# Whatever dies in between


class _Died(Exception):
    """The worker's process ended here."""


def _interrupt(traffic: HAProxyTraffic, at: int, act: Callable[[], None]) -> list[int]:
    """`act` happens right before the effect number `at`: a changing command, or a change of the file."""
    count = [0]

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                act()
            return call(*args)

        return wrapped

    traffic._socket.change = before(traffic._socket.change)  # type: ignore[method-assign]  # to interrupt it
    traffic._file.write = before(traffic._file.write)  # type: ignore[method-assign]  # as above
    return count


# A swap has eleven effects: B's line, four commands, `ready`, the line again; A's drain, maint, line and deletion.
@pytest.mark.parametrize("at", range(1, 12))
def test_a_balancer_killed_between_any_two_steps_ends_as_asked(pair: Stage, at: int) -> None:
    haproxy, sites, _ = pair
    traffic = haproxy.traffic()

    def die() -> None:
        exposed = bool(haproxy.line("B")) and "disabled" not in haproxy.line("B")
        haproxy.restart()
        servers = haproxy.wire.snapshot("web").servers("web")
        assert exposed or "B" not in servers or servers["B"].maintenance

    count = _interrupt(traffic, at, die)
    bring_in(traffic, "web", sites["B"].member)
    take_out(traffic, "web", "a", guard=Guard(min_healthy=1, serving=("B",)))
    assert count[0] >= 11
    assert haproxy.line("a") == ""
    assert set(haproxy.wire.snapshot("web").servers("web")) == {"c", "B"}
    haproxy.restart()
    haproxy.all_up()


@pytest.mark.parametrize("at", range(1, 12))
def test_a_worker_killed_between_any_two_steps_is_continued_by_the_next(pair: Stage, at: int) -> None:
    haproxy, sites, loop = pair
    mortal = haproxy.traffic()

    def die() -> None:
        raise _Died

    _interrupt(mortal, at, die)
    with users_of(haproxy, loop):
        with contextlib.suppress(_Died):
            bring_in(mortal, "web", sites["B"].member)
            take_out(mortal, "web", "a", guard=Guard(min_healthy=1, serving=("B",)))
        bring_in(haproxy.traffic(), "web", sites["B"].member)
        take_out(haproxy.traffic(), "web", "a", guard=Guard(min_healthy=1, serving=("B",)))
    assert set(haproxy.wire.snapshot("web").servers("web")) == {"c", "B"}
    assert haproxy.line("a") == ""


def test_a_drain_that_comes_when_the_others_have_fallen_is_taken_back(pair: Stage) -> None:
    """A worker stands still between its look and its command."""
    haproxy, sites, _ = pair
    traffic = haproxy.traffic()
    bring_in(traffic, "web", sites["B"].member)

    def fall() -> None:
        sites["B"].healthy = sites["c"].healthy = False
        until(lambda: not haproxy.server("B").up and not haproxy.server("c").up)

    _interrupt(traffic, 1, fall)
    with pytest.raises(GuardRefused):
        traffic.remove("web", "a", guard=Guard(min_healthy=1, serving=("B",)), cut=False)
    assert haproxy.server("a").ready and haproxy.server("a").up
    sites["B"].healthy = sites["c"].healthy = True
    until(lambda: haproxy.server("B").up)
    take_out(haproxy.traffic(), "web", "a", guard=Guard(min_healthy=1, serving=("B",)))


def test_two_workers_on_one_backend_do_no_harm(pair: Stage) -> None:
    haproxy, sites, loop = pair

    def swap() -> None:
        traffic = haproxy.traffic()
        bring_in(traffic, "web", sites["B"].member)
        take_out(traffic, "web", "a", guard=Guard(min_healthy=1, serving=("B",)))

    with users_of(haproxy, loop), ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(swap) for _ in range(3)]:
            done.result(60)
    assert set(haproxy.wire.snapshot("web").servers("web")) == {"c", "B"}


def test_many_swaps_at_once_fail_no_request() -> None:
    count = 6
    names = [f"{side}{number}" for side in "aB" for number in range(count)]
    with stage(*names, server="check inter 300ms fastinter 50ms rise 2 fall 2") as (haproxy, sites, loop):

        def swap(number: int) -> None:
            traffic, b = haproxy.traffic(), f"B{number}"
            bring_in(traffic, "web", sites[b].member, seconds=60)
            take_out(traffic, "web", f"a{number}", guard=Guard(min_healthy=count - 1, serving=(b,)), seconds=60)
            sites[f"a{number}"].stop()

        with users_of(haproxy, loop), ThreadPoolExecutor(count) as pool:
            list(pool.map(swap, range(count)))
        assert set(haproxy.wire.snapshot("web").servers("web")) == {f"B{number}" for number in range(count)}


def test_a_frozen_writer_makes_others_busy_and_never_wrong(pair: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    haproxy, sites, _ = pair
    monkeypatch.setattr(haproxy_config, "LOCK_SECONDS", 0.1)
    code = (
        "import sys, time\n"
        "from providers.clients.haproxy_config import ConfigFile\n"
        "with ConfigFile(sys.argv[1]).writer():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(haproxy.config)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        traffic = haproxy.traffic()
        with pytest.raises(Busy):
            traffic.add("web", sites["B"].member)
        assert len(traffic.members("web")) == 2
        assert haproxy.line("B") == ""
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()
    bring_in(traffic, "web", sites["B"].member)


def test_what_a_restart_undid_is_done_again_by_the_same_advances(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic = haproxy.traffic()
    traffic.add("web", sites["B"].member)
    traffic.remove("web", "a", guard=NO_GUARD, cut=False)
    haproxy.restart()
    assert haproxy.server("a").ready

    def step() -> bool:
        traffic.add("web", sites["B"].member)
        if haproxy.server("a").ready:
            with contextlib.suppress(GuardRefused):
                traffic.remove("web", "a", guard=Guard(min_healthy=1), cut=False)
        return haproxy.server("B").up and haproxy.server("a").drain

    until(step)
    assert haproxy.server("c").up


# What HAProxy is told


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a;shutdown sessions server web/c", "a\nshow info", "a/b", "../a", "-a", "a\x00", "é", "a" * 300],
)
def test_a_hostile_name_never_reaches_the_wire(pair: Stage, name: str) -> None:
    haproxy, sites, _ = pair
    traffic, before = haproxy.traffic(), haproxy.config.read_bytes()
    _interrupt(traffic, 1, lambda: pytest.fail("it was sent"))
    b = sites["B"].member
    member = Member(name=name, address=b.address, port=b.port)
    for call in (
        lambda: traffic.add("web", member),
        lambda: traffic.restore("web", member),
        lambda: traffic.remove("web", name, guard=NO_GUARD, cut=True),
        lambda: traffic.members(name),
        lambda: traffic.add(name, b),
    ):
        with pytest.raises(Refused):
            call()
    assert haproxy.config.read_bytes() == before


@pytest.mark.parametrize(
    ("address", "port"), [("web.example", 80), ("1.2.3.4;x", 80), ("fe80::1%eth0", 80), ("::1", 0)]
)
def test_a_hostile_address_never_reaches_the_wire(pair: Stage, address: str, port: int) -> None:
    with pytest.raises(Refused):
        pair[0].traffic().add("web", Member(name="B", address=address, port=port))


def test_a_file_that_haproxy_does_not_take_stays_as_it_was(pair: Stage) -> None:
    haproxy, sites, _ = pair
    broken = haproxy.config.read_text().replace("# kept", "  bogus yes\n# kept")
    haproxy.config.write_text(broken)
    with pytest.raises(Refused, match="bogus"):
        haproxy.traffic().add("web", sites["B"].member)
    assert haproxy.config.read_text() == broken
    assert "B" not in haproxy.wire.snapshot("web").servers("web")
    assert sorted(path.name for path in haproxy.folder.iterdir()) == ["haproxy.cfg", "haproxy.cfg.lock", "log", "s"]


def test_a_binary_of_an_untested_version_is_not_asked(pair: Stage) -> None:
    haproxy, sites, _ = pair
    other = haproxy.folder / "haproxy"
    other.write_text("#!/bin/sh\necho HAProxy version 3.0.1-1 2024/06/10\n")
    other.chmod(0o755)
    with pytest.raises(Refused, match=r"3\.0\.1-1; only 2\.8\.x"):
        haproxy.traffic(binary=str(other)).add("web", sites["B"].member)
    with pytest.raises(Refused, match="cannot run"):
        haproxy.traffic(binary="/nowhere/haproxy").add("web", sites["B"].member)
    assert haproxy.line("B") == ""


def test_a_new_server_has_all_options_of_its_neighbours() -> None:
    backend = "  default-server inter 200ms weight 7 maxconn 77\n"
    with stage("a", "B", backend=backend, server="check rise 2 fall 2 weight 9 slowstart 0") as (haproxy, sites, _):
        bring_in(haproxy.traffic(), "web", sites["B"].member)
        assert haproxy.server("B").weight == 9
        row = haproxy.wire.read("show stat web 4 -1")[0].splitlines()
        limit = row[0].split(",").index("slim")
        assert {line.split(",")[limit] for line in row[1:]} == {"77"}


def test_an_option_that_cannot_be_given_at_run_time_is_named_with_its_place() -> None:
    with stage("a", "B", server=f"{CHECK} init-addr none") as (haproxy, sites, _):
        before = haproxy.config.read_text()
        number = 1 + next(n for n, line in enumerate(before.splitlines()) if "server a" in line)
        with pytest.raises(Refused, match=rf"haproxy.cfg:{number}: .*'init-addr'"):
            haproxy.traffic().add("web", sites["B"].member)
        assert haproxy.config.read_text() == before


def test_a_server_that_haproxy_does_not_add_leaves_no_line_behind() -> None:
    with stage("a", "B", backend="  balance first\n") as (haproxy, sites, _):
        text = haproxy.config.read_text().replace("balance first", "balance static-rr")
        haproxy.config.write_text(text)
        haproxy.restart()
        with pytest.raises(Refused, match="dynamic"):
            haproxy.traffic().add("web", sites["B"].member)
        assert haproxy.config.read_text() == text


def test_sixty_askers_at_once_are_all_answered(pair: Stage) -> None:
    traffic = pair[0].traffic()
    with ThreadPoolExecutor(60) as pool:
        assert [len(found) for found in pool.map(lambda _: traffic.members("web"), range(120))] == [2] * 120


# What HAProxy says


def test_the_counters_count_what_users_were_denied(pair: Stage) -> None:
    haproxy, _, _ = pair
    traffic = haproxy.traffic()
    before = traffic.counters("web")
    visit = Visit(haproxy.users)
    for path in ("/", "/error", "/"):
        visit.ask(path)
        visit.answer()
    visit.close()
    assert before
    until(lambda: (now := traffic.counters("web")) and now.requests >= before.requests + 3)
    after = traffic.counters("web")
    assert after
    assert (after.requests - before.requests, after.failed - before.failed) == (3, 1)
    haproxy.restart()
    restarted = traffic.counters("web")
    assert restarted
    assert restarted.epoch != after.epoch


def test_an_answer_that_breaks_off_is_counted_once(pair: Stage) -> None:
    haproxy, sites, _ = pair
    traffic = haproxy.traffic()
    visit, others = held_at(haproxy, sites["a"])
    sites["a"].stop()
    assert visit.answer()[0] == 502
    for one in (visit, *others):
        one.close()
    until(lambda: (now := traffic.counters("web")) and now.failed == 1)


def test_an_unknown_pool_is_not_found(pair: Stage) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        pair[0].traffic().members("nowhere")


def test_a_pool_may_have_a_backend_of_another_name(pair: Stage) -> None:
    haproxy, _, _ = pair
    traffic = haproxy.traffic(pools={"shop": {"backend": "web"}, "other": {"backend": "web"}})
    views = traffic.proven([("shop", "a"), ("other", "c"), ("shop", "nobody")])
    assert [views[key].state for key in (("shop", "a"), ("other", "c"), ("shop", "nobody"))] == [
        "serving",
        "serving",
        "absent",
    ]
    assert traffic.lane("shop") == f"haproxy:{haproxy.socket}"


def test_a_backend_that_is_no_pool_is_told_as_long_as_it_sends_users(pair: Stage) -> None:
    haproxy, sites, _ = pair
    address = sites["a"].address
    other = haproxy.traffic(pools={"shop": {"backend": "shop"}})
    assert other.elsewhere([address, "127.9.9.9"]) == {address: ["a of backend web"]}
    assert haproxy.traffic(pools={"shop": {"backend": "web"}}).elsewhere([address]) == {}
    haproxy.traffic().remove("web", "a", guard=NO_GUARD, cut=False)
    assert other.elsewhere([address]) == {}, "nobody is sent there any more"


def test_a_balancer_that_is_down_is_transient(pair: Stage) -> None:
    haproxy, _, _ = pair
    haproxy.kill()
    with pytest.raises(Transient):
        haproxy.traffic().members("web")


class _Impostor(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"Name: HAProxy\nVersion: 2.9.1\nPid: 7\nStart_time_sec: 1\n\n1\n\n\n\n")


def test_an_untested_version_is_refused(pair: Stage) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Impostor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = "{}:{}".format(*server.server_address)
        try:
            with pytest.raises(Refused, match=r"2\.9\.1; only 2\.8\.x"):
                HAProxyTraffic({"socket": where, "config": str(pair[0].config)}).members("web")
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"socket": "s.sock"}, "host:port"),
        ({"socket": "./s/sock"}, "relative"),
        ({"config": "haproxy.cfg"}, "relative"),
        ({"config": 7}, "config must be a text"),
        ({"check": "inter 2s; show info"}, "check"),
        ({"quiet": -1}, "quiet"),
        ({"sockets": "/x"}, "'sockets'"),
        ({"pools": {"web": {"backend": "a b"}}}, "a b"),
        ({"pools": {"web": {"name": "a"}}}, "backend"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ProviderError, match=said):
        HAProxyTraffic({"socket": "/run/x.sock", "config": str(tmp_path / "haproxy.cfg"), **wrong})
