"""The small local cloud over its own wire, with real processes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from providers.clients.local_host import LocalHostClient
from providers.compute import Size
from providers.compute.local import LocalCompute
from providers.errors import Conflict, NotFound, ProviderError, Refused, Transient
from providers.guest.local import LocalGuest
from providers.local_host import processes
from tests.contract.worlds import new_key
from tests.support.local_host import MIB, SMALL, LocalHost, until

PYTHON = sys.executable


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with LocalHost() as shared:
        yield shared


@pytest.fixture
def own_host() -> Iterator[LocalHost]:
    """One that the test may kill."""
    with LocalHost() as private:
        yield private


def unique(name: str) -> str:
    return f"{name}-{time.monotonic_ns()}"


def ask(server: dict[str, Any], path: str = "/", body: bytes | None = None) -> str:
    wire = http.client.HTTPConnection(server["address"], server["port"], timeout=10)
    try:
        wire.request("GET" if body is None else "PUT", path, body)
        return wire.getresponse().read().decode()
    finally:
        wire.close()


def image_of(host: LocalHost, source: str) -> str:
    made = LocalCompute(host.settings).ensure_image(new_key(), source=source)
    return str(host.becomes(made.id, "available")["id"])


def clone(host: LocalHost, image: str, like: str, size: Size = SMALL) -> dict[str, Any]:
    made = LocalCompute(host.settings).ensure_server(new_key(), image=image, like=like, size=size)
    host.listening(made.id)
    return host.one(made.id)


def root(host: LocalHost, server: dict[str, Any]) -> Path:
    return host.state / "servers" / str(server["id"]) / "root"


def state_letter(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# The host itself


def begin_host(*args: str) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, "-m", "providers.local_host", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, start_new_session=True, check=False)


def test_a_second_host_on_the_same_folder_refuses_in_one_line(host: LocalHost) -> None:
    second = begin_host("--state", str(host.state))
    assert second.returncode == 1
    assert second.stderr.startswith(f"host: a host already runs on {host.state} (pid ")
    assert second.stderr.count("\n") == 1


def test_a_folder_whose_socket_path_is_too_long_is_refused(tmp_path: Path) -> None:
    refused = begin_host("--state", str(tmp_path / ("x" * 120)))
    assert refused.returncode == 64
    assert "choose a shorter folder" in refused.stderr


def test_a_network_outside_of_loopback_is_refused(host: LocalHost) -> None:
    refused = begin_host("--state", str(host.folder / "other"), "--network", "10.0.0.0/16")
    assert refused.returncode == 64
    assert "within 127.0.0.0/8" in refused.stderr
    assert not (host.folder / "other" / "network").exists()


def test_nobody_else_can_reach_the_folder_or_the_socket(host: LocalHost) -> None:
    assert stat.S_IMODE(host.state.stat().st_mode) == 0o700
    assert stat.S_IMODE(host.client.socket.stat().st_mode) == 0o600


def test_the_host_lives_in_a_session_of_its_own(host: LocalHost) -> None:
    pid = host.client.health()["pid"]
    assert os.getsid(pid) == pid
    assert (host.state / "host.pid").read_text() == f"{pid}\n"


def test_a_host_started_from_a_shell_goes_to_the_background_and_says_how_that_began(host: LocalHost) -> None:
    other = LocalHostClient(host.folder / "other")

    def job(state: Path) -> int:
        command = [PYTHON, "-m", "providers.local_host", "--state", str(state)]
        return subprocess.run(command, process_group=0, timeout=30, stderr=subprocess.DEVNULL, check=False).returncode

    assert job(host.state) == 1
    assert job(other.socket.parent) == 0
    pid = other.health()["pid"]
    assert os.getsid(pid) == pid
    other.end()
    assert not other.socket.exists()


def test_without_a_host_every_call_says_so_and_nothing_is_ambiguous(tmp_path: Path) -> None:
    client = LocalHostClient(tmp_path)
    with pytest.raises(Transient, match="no local host answers") as refused:
        client.create_server(name="web", command=["true"], port=80, size=SMALL)
    assert not refused.value.ambiguous
    client.end()


def test_a_relic_of_a_socket_does_not_keep_a_host_from_starting(own_host: LocalHost) -> None:
    own_host.kill()
    assert own_host.client.socket.exists()
    own_host.start()
    assert own_host.client.health()["servers"] == 0


@pytest.mark.parametrize("way", ["call", "signal"])
def test_the_end_of_a_host_leaves_no_process_and_the_next_one_starts_what_was_meant_to_run(
    own_host: LocalHost, way: str
) -> None:
    runs, rests = own_host.server("runs"), own_host.server("rests")
    own_host.client.call("POST", f"/servers/{rests['id']}/stop")
    own_host.becomes(rests["id"], "stopped")
    assert own_host.process is not None
    if way == "call":
        own_host.client.end()
    else:
        own_host.process.terminate()
    assert own_host.process.wait(20) == 0
    assert own_host.leftovers() == []
    own_host.start()
    own_host.listening(runs["id"])
    assert own_host.one(runs["id"])["boot"] != runs["boot"]
    assert own_host.one(runs["id"])["address"] == runs["address"]
    assert own_host.one(rests["id"])["state"] == "stopped"


def test_a_killed_host_finds_its_servers_again(own_host: LocalHost) -> None:
    lives, dies, crashed = own_host.server("lives"), own_host.server("dies"), own_host.server("crashed")
    os.kill(crashed["pid"], signal.SIGKILL)
    own_host.becomes(crashed["id"], "failed")
    own_host.kill()
    assert lives["address"] in ask(lives)
    os.kill(dies["pid"], signal.SIGKILL)
    own_host.start()
    now = own_host.one(lives["id"])
    assert (now["state"], now["pid"], now["boot"]) == ("running", lives["pid"], lives["boot"])
    own_host.listening(dies["id"])
    assert own_host.one(dies["id"])["boot"] != dies["boot"]
    assert own_host.one(crashed["id"])["state"] == "failed"
    # What was adopted is watched and ended like a child.
    os.kill(lives["pid"], signal.SIGKILL)
    assert "exit code is unknown" in own_host.becomes(lives["id"], "failed")["reason"]


def test_a_host_killed_while_it_stops_and_ends_servers_goes_on_with_that(own_host: LocalHost) -> None:
    deaf = [
        PYTHON,
        "-S",
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
    ]
    servers = [own_host.client.create_server(name=n, command=deaf, port=81, size=SMALL, grace=1) for n in ("a", "b")]
    until(lambda: all(own_host.client.console(server["id"]) for server in servers), "both are deaf")
    own_host.client.call("PATCH", f"/servers/{servers[0]['id']}/tags", {"tags": {"changeover:disposable": "1"}})
    own_host.client.call("DELETE", f"/servers/{servers[0]['id']}")
    own_host.client.call("POST", f"/servers/{servers[1]['id']}/stop")
    own_host.kill()
    own_host.start()
    own_host.becomes(servers[0]["id"], "terminated")
    own_host.becomes(servers[1]["id"], "stopped")
    assert own_host.leftovers() == []


# Servers


def test_a_server_has_its_own_address_and_a_clean_environment(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (host.server(unique("web"), env={"COLOUR": "{name}@{port}"}) for _ in range(2))
    assert one["address"] != other["address"]
    assert one["address"].startswith("127.")
    assert ask(one).split() == [one["address"], str(one["pid"]), f"{one['name']}@8080"]
    env = dict(pair.split("=", 1) for pair in Path(f"/proc/{one['pid']}/environ").read_text().rstrip("\0").split("\0"))
    assert set(env) == {
        "PATH", "LANG", "HOME", "HOST", "ADDRESS", "PORT", "COLOUR", processes.HOST_MARK, processes.BOOT_MARK,
    }  # fmt: skip
    assert env["HOME"] == str(root(host, one)) == str(Path(f"/proc/{one['pid']}/cwd").readlink())


def test_a_server_starts_on_a_copy_of_its_folder(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("hello")
    server = host.server(unique("copied"), files_from=tmp_path)
    assert ask(server, "/page") == "hello"
    ask(server, "/page", b"changed")
    assert (tmp_path / "page").read_text() == "hello"


def test_a_server_that_ends_by_itself_has_failed_says_why_and_is_not_started_again(host: LocalHost) -> None:
    program = [PYTHON, "-S", "-c", "import sys; sys.exit('no such database')"]
    made = host.client.create_server(name=unique("fails"), command=program, port=81, size=SMALL)
    failed = host.becomes(made["id"], "failed")
    assert failed["reason"] == "ended by itself with exit code 1; it last said: no such database"
    host.client.call("POST", f"/servers/{made['id']}/start")
    until(lambda: host.one(made["id"])["boot"] != failed["boot"], "another start")
    host.becomes(made["id"], "failed")


def test_a_command_that_cannot_be_run_is_named(host: LocalHost) -> None:
    made = host.client.create_server(name=unique("none"), command=["/no/such/program"], port=81, size=SMALL)
    assert "cannot run '/no/such/program'" in host.becomes(made["id"], "failed")["reason"]


def test_a_server_cannot_hide_from_its_host(host: LocalHost) -> None:
    server = host.server(unique("hides"), env={processes.BOOT_MARK: "another", "PATH": "/nowhere"})
    assert processes.marked(processes.BOOT_MARK, server["boot"]) == [server["pid"]]
    assert "PATH=/nowhere" in Path(f"/proc/{server['pid']}/environ").read_text().split("\0")


def test_stopping_ends_a_server_that_does_not_listen_and_everything_that_it_started(host: LocalHost) -> None:
    server = host.server(unique("family"), grace=0.3)
    child = int(ask(server, "/child"))
    os.kill(server["pid"], signal.SIGSTOP)  # a stopped process takes no SIGTERM
    host.client.call("POST", f"/servers/{server['id']}/stop")
    assert host.becomes(server["id"], "stopped")["reason"] == "did not end within 0.3 s and was killed"
    until(lambda: processes.identify(child) is None or state_letter(child) == "Z", "its child ends too")


def test_more_memory_than_the_size_has_is_refused_by_the_kernel(host: LocalHost) -> None:
    server = host.server(unique("memory"), size=Size(memory=64 * MIB, disk=SMALL.disk))
    assert ask(server, "/allocate?16") == f"got {16 * MIB}"
    assert ask(server, "/allocate?100") == "MemoryError"
    facts = LocalGuest(host.settings).facts([server["id"]], paths=[])[server["id"]]
    assert facts.memory_total == 64 * MIB
    assert 0 < facts.memory_used < 64 * MIB
    bigger = clone(host, image_of(host, server["id"]), server["id"], Size(memory=256 * MIB, disk=SMALL.disk))
    assert ask(bigger, "/allocate?100") == f"got {100 * MIB}"


def test_a_file_larger_than_the_disk_is_refused_by_the_kernel(host: LocalHost) -> None:
    server = host.server(unique("disk"), size=Size(memory=SMALL.memory, disk=2 * MIB))
    assert ask(server, "/write?1") == "written"
    assert ask(server, "/write?3") == "File too large"


def test_a_name_is_taken_until_its_server_is_terminated(host: LocalHost) -> None:
    server = host.server(unique("name"), tags={"changeover:disposable": "1"})
    with pytest.raises(Conflict, match="already called"):
        host.server(server["name"])
    host.client.call("DELETE", f"/servers/{server['id']}")
    host.becomes(server["id"], "terminated")
    assert not root(host, server).exists()
    assert host.server(server["name"])["address"] != server["address"]


GOOD: dict[str, Any] = {
    "name": "x",
    "command": ["true"],
    "port": 80,
    "size": {"memory": 64 * MIB, "disk": MIB, "type": ""},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../x"}, "server name"),
        ({"name": "a\nb"}, "server name"),
        ({"name": 7}, "'name' has the wrong type"),
        ({"command": []}, "'command'"),
        ({"command": "sh -c x"}, "'command' has the wrong type"),
        ({"command": ["a\0b"]}, "'command'"),
        ({"port": 0}, "'port'"),
        ({"port": True}, "'port' has the wrong type"),
        ({"size": {"memory": 1}}, "size: 'disk' is missing"),
        ({"size": {"memory": 1, "disk": MIB, "type": ""}}, "at least 1 MiB of memory"),
        ({"env": {"A B": "x"}}, "env: 'A B'"),
        ({"env": {"A": 7}}, "env: 'A' must be a text"),
        ({"tags": {"a": None}}, "tags: 'a' must be a text"),
        ({"files_from": "relative"}, "'files_from'"),
        ({"files_from": "/no/such/folder"}, "'files_from'"),
        ({"grace": -1}, "'grace'"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_bad_input_is_refused_with_the_place_and_makes_nothing(
    host: LocalHost, change: dict[str, Any], said: str
) -> None:
    before = len(host.client.servers())
    with pytest.raises(Refused, match=said):
        host.client.call("POST", "/servers", {**GOOD, **change})
    assert len(host.client.servers()) == before


@pytest.mark.parametrize("raw", [b"[]", b"nope", b'{"a":' * 60000, b"\xff\xfe"])
def test_a_body_that_is_no_object_is_refused(host: LocalHost, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(10)
        wire.connect(str(host.client.socket))
        wire.sendall(
            b"POST /servers HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw
        )
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "Refused"


def test_calls_that_do_not_exist_and_tokens_that_are_none_are_refused(host: LocalHost) -> None:
    for method, path in [("GET", "/nothing"), ("POST", "/health"), ("PUT", "/images/by-token/x")]:
        with pytest.raises(Refused):
            host.client.call(method, path, {"name": "n", "tags": {}, "source": "s"} if method == "PUT" else None)


# Images


def test_a_clone_has_what_the_server_wrote_and_the_server_runs_on(host: LocalHost) -> None:
    server = host.server(unique("cloned"), env={"COLOUR": "blue"}, tags={"team": "a", "traffic:pool": "p"})
    ask(server, "/note", b"written later")
    made = clone(host, image_of(host, server["id"]), server["id"])
    assert ask(made, "/note") == "written later"
    assert ask(made).split()[0::2] == [made["address"], "blue"]
    assert made["tags"] == {"team": "a", "changeover:managed": "1"}
    assert host.one(server["id"])["boot"] == server["boot"]
    assert state_letter(server["pid"]) in "RS"


def test_an_image_keeps_links_permissions_times_and_owners_and_leaves_sockets_out(
    host: LocalHost, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    (files / "deep" / "er").mkdir(parents=True)
    (files / "deep" / "a").write_text("one")
    os.link(files / "deep" / "a", files / "b")
    (files / "inside").symlink_to("deep/a")
    (files / "outside").symlink_to("/etc/passwd")
    (files / "dangling").symlink_to("../../nothing")
    (files / "naïve \n name").write_text("odd")
    (files / os.fsdecode(b"\xff")).write_text("no UTF-8")
    (files / "empty").touch()
    (files / "b").chmod(0o640)
    (files / "deep").chmod(0o2750)
    os.mkfifo(files / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(files / "s"))
    if os.geteuid() == 0:
        os.chown(files / "b", 12345, 23456)
        os.chown(files / "outside", 12345, 23456, follow_symlinks=False)
    os.utime(files / "b", (1_000_000_000.25, 1_100_000_000.5))
    os.utime(files / "deep", (1_000_000_000, 1_200_000_000))

    def picture(top: Path) -> dict[str, Any]:
        found = {}
        for path in [top, *top.rglob("*")]:
            info = path.lstat()
            if stat.S_ISSOCK(info.st_mode) or stat.S_ISFIFO(info.st_mode):
                continue
            what = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else info.st_nlink
            when = 0 if path == top else info.st_mtime_ns // 1000
            found[str(path.relative_to(top))] = (info.st_mode, info.st_uid, info.st_gid, when, what)
        return found

    server = host.server(unique("links"), files_from=files)
    assert picture(root(host, server)) == picture(files)
    made = root(host, clone(host, image_of(host, server["id"]), server["id"]))
    assert picture(made) == picture(files)
    assert (made / "b").samefile(made / "deep" / "a")
    assert not (made / "pipe").exists()


PAIRS = """
import os, time
n = 0
while True:
    n += 1
    for name in "ab":
        with open(name + ".new", "w") as file:
            file.write(f"{n} " * 20000)
        os.replace(name + ".new", name)
"""


def test_an_image_of_a_server_that_writes_all_the_time_is_of_one_moment(host: LocalHost) -> None:
    server = host.client.create_server(
        name=unique("busy"),
        command=[PYTHON, "-S", "-c", PAIRS],
        port=81,
        size=SMALL,
        tags={"changeover:disposable": "1"},
    )
    until((root(host, server) / "b").exists, "it writes")
    for _ in range(5):
        made = LocalCompute(host.settings).ensure_server(
            new_key(), image=image_of(host, server["id"]), like=server["id"], size=SMALL
        )
        host.becomes(made.id, "running")
        host.client.call("POST", f"/servers/{made.id}/stop")
        host.becomes(made.id, "stopped")
    # The archive itself is what counts: the clone above has written on since.
    from providers.local_host import archive

    for number, image in enumerate(host.client.images()):
        if image["source"] == server["id"]:
            target = host.folder / f"unpacked-{number}"
            archive.unpack(host.state / "images" / f"{image['id']}.tar.zst", target)
            words = [(target / name).read_text().split() for name in "ab"]
            assert [len(some) for some in words] == [20000, 20000]
            assert len({*words[0]}) == len({*words[1]}) == 1
            assert int(words[0][0]) - int(words[1][0]) in (0, 1)
    host.client.call("DELETE", f"/servers/{server['id']}")


def heavy(folder: Path) -> Path:
    """One that takes a while to read: many names for few files, since making files is slow on some disks."""
    for number in range(6000):
        if number % 1000 == 0:
            (folder / f"{number}").write_bytes(b"x" * 100)
        else:
            os.link(folder / f"{number - number % 1000}", folder / f"{number}")
    return folder


def test_a_host_killed_in_the_middle_of_an_image_leaves_no_server_standing_still(
    own_host: LocalHost, tmp_path: Path
) -> None:
    server = own_host.server("frozen", files_from=heavy(tmp_path), size=Size(memory=SMALL.memory, disk=64 * MIB))
    image = LocalCompute(own_host.settings).ensure_image(new_key(), source=server["id"])
    until(lambda: state_letter(server["pid"]) == "T", "it stands still")
    own_host.kill()
    until(lambda: state_letter(server["pid"]) in "RS", "it runs on without a host", seconds=2)
    assert server["address"] in ask(server)
    own_host.start()
    assert own_host.one(server["id"])["pid"] == server["pid"]
    own_host.becomes(image.id, "available")
    assert sorted(path.name for path in (own_host.state / "images").iterdir()) == [
        f"{image.id}.json",
        f"{image.id}.tar.zst",
    ]
    until(lambda: not list((own_host.state / "staging").iterdir()), "nothing is left of the making")


def test_an_image_that_takes_too_long_fails_and_the_server_runs_on(tmp_path: Path) -> None:
    with LocalHost("--max-pause", "0.02") as host:
        server = host.server("large", files_from=heavy(tmp_path), size=Size(memory=SMALL.memory, disk=64 * MIB))
        made = LocalCompute(host.settings).ensure_image(new_key(), source=server["id"])
        host.becomes(made.id, "failed")
        assert state_letter(server["pid"]) in "RS"
        assert not list((host.state / "images").glob("*.zst"))


def test_an_image_that_needs_more_disk_than_the_size_has_is_refused(host: LocalHost) -> None:
    server = host.server(unique("full"))
    ask(server, "/write?3")
    image = image_of(host, server["id"])
    disk = LocalCompute(host.settings).images([image])[image].disk
    assert disk == 3 * MIB
    with pytest.raises(Refused, match=f"needs {disk} bytes of disk"):
        clone(host, image, server["id"], Size(memory=SMALL.memory, disk=2 * MIB))
    assert clone(host, image, server["id"], Size(memory=SMALL.memory, disk=3 * MIB))["state"] == "running"


def test_an_image_that_is_not_available_yet_makes_no_server(host: LocalHost) -> None:
    with pytest.raises(NotFound):
        clone(host, "img-000000000000", host.server(unique("early"))["id"])


def test_a_stopped_server_can_be_imaged(host: LocalHost) -> None:
    server = host.server(unique("resting"))
    ask(server, "/note", b"kept")
    host.client.call("POST", f"/servers/{server['id']}/stop")
    host.becomes(server["id"], "stopped")
    assert ask(clone(host, image_of(host, server["id"]), server["id"]), "/note") == "kept"


# A look inside


def test_facts_are_those_of_the_real_process_and_folder(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "app.conf").write_text("x" * 5000)
    (tmp_path / "etc" / "app.conf").chmod(0o640)
    (tmp_path / "conf").symlink_to("etc")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "abs").symlink_to("/etc")
    (tmp_path / "round").symlink_to("round")
    server = host.server(unique("facts"), files_from=tmp_path)
    facts = LocalGuest(host.settings).facts(
        [server["id"], "srv-000000000000"],
        paths=[
            "etc/app.conf", "/etc/app.conf", "etc", "conf", "conf/app.conf", "conf/", "etc/../conf/./app.conf",
            "/etc/passwd", "../../record.json", "up/record.json", "abs/passwd", "round/x", "etc/app.conf/x", "a\0b", "",
        ],
    )  # fmt: skip
    assert set(facts) == {server["id"]}
    found = facts[server["id"]]
    assert [path.kind for path in found.paths] == [
        "file", "file", "directory", "link", "file", "directory", "file",
        "missing", "missing", "missing", "missing", "missing", "missing", "missing", "directory",
    ]  # fmt: skip
    assert found.paths[0].mode == "0640"
    assert (found.paths[0].owner, found.paths[0].group) == ((tmp_path / "etc").owner(), (tmp_path / "etc").group())
    assert found.disk_total == SMALL.disk
    assert found.disk_used == 8192 + 5 * 4096
    assert found.listening == (8080,)
    assert found.boot == server["boot"]
    assert abs(found.clock_offset) < 1


def test_a_server_counts_the_connections_that_are_open_to_it(host: LocalHost) -> None:
    server = host.server(unique("busy"))
    guest = LocalGuest(host.settings)

    def counted() -> int:
        found = guest.facts([server["id"]], paths=[])[server["id"]].connections
        assert found is not None
        return found["8080"]

    until(lambda: counted() == 0, "nobody is connected")
    with socket.create_connection((server["address"], 8080)), socket.create_connection((server["address"], 8080)):
        until(lambda: counted() == 2, "two are connected")
    until(lambda: counted() == 0, "both have gone")


def test_a_server_whose_folder_cannot_be_read_hides_only_itself(host: LocalHost) -> None:
    well = host.server(unique("well"))
    program = "import os, time\nfor _ in range(250): os.mkdir('x' * 20); os.chdir('x' * 20)\ntime.sleep(600)"
    made = host.client.create_server(name=unique("deep"), command=[PYTHON, "-c", program], port=8080, size=SMALL)
    guest = LocalGuest(host.settings)
    until(lambda: made["id"] not in guest.facts([made["id"]], paths=[]) and host.one(made["id"])["pid"], "too deep")
    until(lambda: list(guest.facts([well["id"], made["id"]], paths=["/"])) == [well["id"]], "the other's facts")


def test_a_server_that_does_not_run_has_no_facts(host: LocalHost) -> None:
    server, other = host.server(unique("still")), host.server(unique("awake"))
    host.client.call("POST", f"/servers/{server['id']}/stop")
    host.becomes(server["id"], "stopped")
    assert set(LocalGuest(host.settings).facts([server["id"], other["id"]], paths=[])) == {other["id"]}


# HAProxy


def balancer(host: LocalHost, name: str) -> tuple[Path, Path]:
    """A configuration that answers on its statistics socket."""
    runtime = host.folder / name
    config = host.folder / f"{name}.cfg"
    config.write_text(
        f"global\n  stats socket {runtime}/s mode 600 level admin\ndefaults\n  mode http\n  timeout connect 1s\n"
        "  timeout client 5s\n  timeout server 5s\nbackend web\n  server a 127.0.0.1:9 disabled\n"
    )
    return config, runtime


def runtime_pid(runtime: Path) -> int:
    try:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(3)
            wire.connect(str(runtime / "s"))
            wire.sendall(b"show info\n")
            told = b"".join(iter(lambda: wire.recv(65536), b"")).decode()
    except OSError:
        return 0
    return int(told.partition("\nPid: ")[2].partition("\n")[0])


def test_haproxy_is_started_once_and_again_from_its_file_when_it_dies(own_host: LocalHost) -> None:
    config, runtime = balancer(own_host, "lb")
    first = own_host.client.put_haproxy("lb", config=config, runtime=runtime)
    again = own_host.client.put_haproxy("lb", config=config, runtime=runtime)
    assert first["pid"] == again["pid"]
    until(lambda: runtime_pid(runtime) == first["pid"], "it answers")
    os.kill(first["pid"], signal.SIGKILL)
    second = until(lambda: runtime_pid(runtime), "it answers again")
    assert second != first["pid"]
    told = until(lambda: next(b for b in own_host.client.haproxies() if b["pid"] == second), "it is told")
    assert told["restarts"] == 1
    assert "SIGKILL" in told["reason"]
    own_host.kill()
    assert runtime_pid(runtime) == second
    own_host.start()
    assert own_host.client.haproxies()[0]["pid"] == second
    os.kill(second, signal.SIGKILL)
    until(lambda: runtime_pid(runtime) not in (0, second), "it is watched as before")
    own_host.client.delete_haproxy("lb")
    own_host.client.delete_haproxy("lb")
    assert runtime_pid(runtime) == 0
    assert own_host.client.haproxies() == []
    assert own_host.leftovers() == []


def test_haproxy_ends_with_the_host_and_starts_with_the_next(own_host: LocalHost) -> None:
    config, runtime = balancer(own_host, "lb")
    own_host.client.put_haproxy("lb", config=config, runtime=runtime)
    until(lambda: runtime_pid(runtime), "it answers")
    own_host.client.end()
    assert own_host.leftovers() == []
    own_host.start()
    until(lambda: runtime_pid(runtime), "it answers again")


def test_a_file_that_haproxy_does_not_take_is_refused_in_its_own_words(host: LocalHost) -> None:
    config, runtime = balancer(host, "bad")
    config.write_text(config.read_text() + "  surprise\n")
    with pytest.raises(Refused, match="unknown keyword 'surprise'"):
        host.client.put_haproxy("bad", config=config, runtime=runtime)
    assert host.client.haproxies() == []


def test_the_same_name_for_another_file_is_a_conflict(own_host: LocalHost) -> None:
    config, runtime = balancer(own_host, "lb")
    other, _ = balancer(own_host, "other")
    own_host.client.put_haproxy("lb", config=config, runtime=runtime)
    with pytest.raises(Conflict, match="runs from"):
        own_host.client.put_haproxy("lb", config=other, runtime=runtime)


def test_another_version_of_haproxy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "haproxy"
    fake.write_text("#!/bin/sh\necho 'HAProxy version 3.2.1 2026/01/01'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(fake))
    with LocalHost() as host:
        config, runtime = balancer(host, "lb")
        with pytest.raises(ProviderError, match=r"HAProxy 2\.8 is needed"):
            host.client.put_haproxy("lb", config=config, runtime=runtime)
