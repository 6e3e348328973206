"""A fleet file is read, or refused with every fault, each on one line with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import fleet_file
from orchestrator.domain.fleet import Fleet
from orchestrator.errors import BadInput

GOOD = """\
version: 1
fleet: shop
provider:
  name: local
  settings: {host: unix, size: 3}
target:
  size: {memory: 256MiB, disk: 1GiB}
servers:
  - {name: web-1, domain: r1, pools: [web]}
  - name: web-2
    domain: r1
    pools: [web, api]
traffic:
  provider: haproxy
  pools:
    web: {port: 8080}
    api: {port: 8081, min_healthy: 1}
checks:
  guest: {disk_free: 10MiB, permissions: [{path: data, mode: "0750"}]}
  smoke:
    requests:
      - url: http://shop.example/healthz
        headers: {Authorization: "env:TOKEN"}
state: stateless
rollout:
  waves: [1, rest]
  bake: 3s
  budget: {before_swap: "5%"}
"""


def refused(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        fleet_file.read(text, name="fleet.yaml")
    assert caught.value.exit_code == 64
    assert caught.value.next
    assert "pydantic" not in caught.value.message
    return caught.value.message


def answer(text: str) -> str:
    """Nothing but a fleet or `BadInput` ever comes back."""
    try:
        fleet = fleet_file.read(text, name="fleet.yaml")
    except BadInput as error:
        return error.message
    return f"fleet.yaml is good: {len(fleet.servers)} servers"


def changed(was: str, now: str) -> str:
    assert was in GOOD
    return refused(GOOD.replace(was, now, 1))


def test_a_good_file_is_read_whole() -> None:
    fleet = fleet_file.read(GOOD, name="fleet.yaml")
    assert [server.name for server in fleet.servers] == ["web-1", "web-2"]
    assert fleet.rollout.bake == 3.0
    assert fleet.target.size.disk == 2**30
    assert Fleet.model_validate_json(json.dumps(fleet.canonical())) == fleet


def test_ports_and_clock_inside_are_read_and_plans_without_them_keep_their_hash() -> None:
    more = "listening: [8080], listening_like_old: true, clock: 2s"
    said = GOOD.replace("guest: {disk_free: 10MiB,", f"guest: {{disk_free: 10MiB, {more},")
    fleet = fleet_file.read(said, name="fleet.yaml")
    guest = fleet.checks.guest
    assert (guest.listening, guest.listening_like_old, guest.clock) == ((8080,), True, 2.0)
    assert Fleet.model_validate_json(json.dumps(fleet.canonical())) == fleet
    bare = fleet_file.read(GOOD, name="fleet.yaml").canonical()["checks"]["guest"]
    assert not {"listening", "listening_like_old", "clock"} & bare.keys()


def test_a_quiesce_hook_is_two_commands_and_a_time() -> None:
    said = "quiesce: {before: [freeze, /srv], after: [thaw, /srv], timeout: 30s}\n"
    fleet = fleet_file.read(GOOD + said, name="fleet.yaml")
    assert fleet.quiesce is not None
    assert (fleet.quiesce.before, fleet.quiesce.timeout) == (("freeze", "/srv"), 30.0)
    assert Fleet.model_validate_json(json.dumps(fleet.canonical())) == fleet
    assert "quiesce" not in fleet_file.read(GOOD, name="fleet.yaml").canonical(), "plans without one keep their hash"
    assert "quiesce.after" in refused(GOOD + "quiesce: {before: [freeze]}\n")
    assert "quiesce.timeout" in refused(GOOD + said.replace("30s", "1s"))


def test_anchors_and_aliases_are_written_out() -> None:
    text = GOOD.replace("[web]}", "&pools [web]}").replace("[web, api]", "*pools")
    assert fleet_file.read(text, name="fleet.yaml").servers[1].pools == ("web",)


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("name: web-1", "nmae: web-1", "fleet.yaml:9: servers[0].nmae: unknown key 'nmae'; did you mean 'name'?"),
        ("pools: [web]", "pool: [web]", "fleet.yaml:9: servers[0].pool: unknown key 'pool'; did you mean 'pools'?"),
        ("fleet: shop", "fleet: shop\nzzz: 1", "fleet.yaml:3: zzz: unknown key 'zzz'; known here: "),
        ("name: web-2", "name: web-1", "fleet.yaml:10: servers[1]: web-1 is there twice"),
        ("version: 1", "version: 2", "fleet.yaml:1: version: wants 1, not 2"),
        ("version: 1", 'version: "1"', "fleet.yaml:1: version: wants 1, not '1'"),
        ("fleet: shop", "fleet: 12", 'fleet.yaml:2: fleet: wants text: put it in quotes, "12"'),
        ("port: 8080", 'port: "8080"', "fleet.yaml:16: traffic.pools.web.port: wants a whole number, not '8080'"),
        ("port: 8080", "port: 99999", "fleet.yaml:16: traffic.pools.web.port: must be at most 65,535, not 99999"),
        ("port: 8080", "port: 80.5", "fleet.yaml:16: traffic.pools.web.port: wants a whole number, not 80.5"),
        ("port: 8080", "port: -1", "fleet.yaml:16: traffic.pools.web.port: must be at least 1, not -1"),
        ("{port: 8080}", "[8080]", "fleet.yaml:16: traffic.pools.web: wants keys and values, not a list"),
        ("256MiB", "256", "fleet.yaml:7: target.size.memory: write a size with its unit, such as 256MiB or 10GiB"),
        ("256MiB", "0B", "fleet.yaml:7: target.size.memory: must be more than 0, not '0B'"),
        ("3s", "-3s", "fleet.yaml:27: rollout.bake: write a duration with its unit, such as 30s, 5m or 24h"),
        ("3s", "999999999999d", "fleet.yaml:27: rollout.bake: must be at most 31,622,400, not '999999999999d'"),
        ("stateless", "statefull", "fleet.yaml:24: state: say why cloning is safe"),
        ("state: stateless\n", "", "fleet.yaml:1: state: say why cloning is safe"),
        ("stateless", "{sync: []}", "fleet.yaml:24: state.sync: needs at least 1, has 0"),
        ("stateless", "{acknowledged: x}", "fleet.yaml:24: state.acknowledged: needs at least 10 characters"),
        ("[1, rest]", "[0, rest]", "fleet.yaml:26: rollout.waves[0]: a wave is a count from 1"),
        ("[1, rest]", "[1]", "fleet.yaml:26: rollout.waves: the waves take 1 of 2 servers: end them with rest"),
        ('"5%"', '"500%"', "fleet.yaml:28: rollout.budget.before_swap: wants a count such as 2, or a share such as"),
        ("[web, api]", "[web, db]", "fleet.yaml:10: servers[1]: pool 'db' is not under traffic.pools"),
        ("domain: r1, ", "", "fleet.yaml:8: servers: some servers have a domain and web-1 has none"),
        ("bake: 3s", "deadlines: {swop: 3s}", "fleet.yaml:27: rollout.deadlines: 'swop' is no step"),
        ("size: 3}", "size: 3.5}", "fleet.yaml:5: provider.settings.size: wants a line of text or a whole number"),
        ("http://shop", "ftp://shop", "fleet.yaml:22: checks.smoke.requests[0].url: takes a URL such as"),
        ("target:\n  size: {memory: 256MiB, disk: 1GiB}\n", "", "fleet.yaml:1: target: is missing"),
    ],
)
def test_a_wrong_value_is_told_with_its_line_and_path(was: str, now: str, told: str) -> None:
    message = changed(was, now)
    assert any(line.startswith(told) for line in message.splitlines()), message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    "name",
    [
        "../etc",
        "a/b",
        '"a\\nb"',
        '"a;rm -rf /"',
        '"$(id)"',
        '"a b"',
        '"web;disable server x"',
        '"web-1\\r"',
        "Web",
        '""',
    ],
)
def test_a_dangerous_name_is_refused_on_one_printable_line(name: str) -> None:
    for text, place in (("name: web-2", "servers[1].name"), ("fleet: shop", "fleet")):
        message = changed(text, f"{text.split(':')[0]}: {name}")
        assert message.startswith("fleet.yaml:")
        assert f": {place}: takes lower-case letters" in message
        assert message.isprintable()


def test_a_secret_is_refused_without_being_repeated() -> None:
    message = changed('"env:TOKEN"', "hunter2")
    assert message.startswith("fleet.yaml:22: checks.smoke.requests[0]: header Authorization carries a secret")
    assert "hunter2" not in message
    assert "hunter2" not in changed('"env:TOKEN"', '"hunter2\\n"')


def test_zero_servers_are_refused() -> None:
    start, end = GOOD.index("servers:"), GOOD.index("traffic:")
    assert refused(GOOD[:start] + "servers: []\n" + GOOD[end:]) == "fleet.yaml:8: servers: needs at least 1, has 0"


def test_more_than_ten_thousand_servers_are_refused() -> None:
    start, end = GOOD.index("servers:"), GOOD.index("traffic:")
    many = "".join(f"- {{name: w{n}, pools: [web]}}\n" for n in range(10_001))
    message = refused(f"{GOOD[:start]}servers:\n{many}{GOOD[end:]}")
    assert message == "fleet.yaml:8: servers: 10,001 servers; 10,000 are the most"
    fewer = many.replace("- {name: w0, pools: [web]}\n", "")
    assert len(fleet_file.read(f"{GOOD[:start]}servers:\n{fewer}{GOOD[end:]}", name="fleet.yaml").servers) == 10_000


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("no", "YAML reads 'no' as true or false"),
        ("On", "YAML reads 'On' as true or false"),
        ("0750", "YAML reads '0750' as an octal or binary number"),
        ("0x1F", "YAML reads '0x1F' as a hexadecimal number"),
        ("12:30", "YAML reads '12:30' as a number to base 60"),
        ("2024-01-31", "YAML reads '2024-01-31' as a date"),
        (".inf", "'.inf' is no number that can be used"),
        (".NaN", "'.NaN' is no number that can be used"),
        ("1e999", "'1e999' is no number that can be used"),
        ("1_000", "'1_000' is no number that can be used"),
        ("9" * 40, f"'{'9' * 40}' is no number that can be used"),
    ],
)
def test_a_word_that_yaml_would_guess_at_is_asked_for_in_quotes(word: str, told: str) -> None:
    message = changed("name: web-2", f"name: {word}")
    assert message.startswith(f"fleet.yaml:10: servers[1].name: {told}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "fleet.yaml: is empty"),
        ("- a\n", "fleet.yaml:1: must be keys and values"),
        ("a: !!python/object/apply:os.system [id]\n", "fleet.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply"),
        ("a: !!binary aGk=\n", "fleet.yaml:1: the tag"),
        ("a: 1\nb: 2\na: 3\n", "fleet.yaml:3: the key 'a' is there twice, first in line 1"),
        ("a: &x [*x]\n", "fleet.yaml:1: the alias *x is part of itself"),
        ("a: *x\n", "fleet.yaml:1: the alias *x has no anchor"),
        ("a: " + "[" * 30 + "]" * 30, "fleet.yaml:1: is nested deeper than 20 levels"),
        ("[" * 500_000, "fleet.yaml:1: is nested deeper than 20 levels"),
        ("a: 1\n--- \nb: 1\n", "fleet.yaml:2: a second document begins here"),
        ("a: 1\nb:\n\tc: 2\n", "fleet.yaml:3: a tab in the indentation: YAML wants spaces"),
        ("a: {b: 1\n", "fleet.yaml:2: is no YAML: "),
        ("a: 1\nb: \x00\n", "fleet.yaml:2: holds a NUL byte"),
        ("a: 1\nb: \x07\n", "fleet.yaml:2: holds a control character"),
        ("\ufeffversion: 1\n", "fleet.yaml:1: begins with a byte order mark"),
        ("a: \ud800", "fleet.yaml: holds characters that are not Unicode text"),
        ("<<: {a: 1}\n", "fleet.yaml:1: merging by << is not supported"),
        ("1: a\n", "fleet.yaml:1: the key '1' must be text: put it in quotes"),
        ("? [a]\n: b\n", "fleet.yaml:1: a key must be text"),
        ("x: " + "y" * (1 << 20), "fleet.yaml: is larger than 1 MiB"),
    ],
)
def test_hostile_or_broken_yaml_is_refused_on_one_line(text: str, told: str) -> None:
    message = refused(text)
    assert message.startswith(told), message
    assert "\n" not in message


def test_an_alias_bomb_is_refused_before_it_unfolds() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "its aliases written out" in refused("\n".join(lines))
    long = "a: &a " + "x" * 900_000 + "\nb: [" + ", ".join(["*a"] * 1000) + "]"
    assert "its aliases written out" in refused(long)


def test_all_faults_are_told_up_to_twenty() -> None:
    extra = "\n".join(f"extra{n}: 1" for n in range(30))
    lines = refused(f"{GOOD}{extra}\n").splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("fleet.yaml:29: extra0: unknown key")
    assert lines[-1] == "and 10 more"


def test_what_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    for raw, told in (
        (b"\xff\xfev\x00", "begins with UTF-16"),
        (b"\xef\xbb\xbfversion: 1", "begins with a byte order mark"),
        (b"version: 1\nfleet: \xe9\n", "fleet.yaml:2: byte 0xe9 is not UTF-8"),
        (b" " * (2 << 20), "is larger than 1 MiB"),
    ):
        (tmp_path / "fleet.yaml").write_bytes(raw)
        with pytest.raises(BadInput, match=told):
            fleet_file.load(tmp_path / "fleet.yaml")
    with pytest.raises(BadInput, match="there is no such file"):
        fleet_file.load(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="is a folder"):
        fleet_file.load(tmp_path)
    with pytest.raises(BadInput, match="cannot be read"):
        fleet_file.load("a\x00b")


def test_a_file_on_disk_is_read(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(GOOD)
    assert fleet_file.load(tmp_path / "fleet.yaml").fleet == "shop"


def test_a_part_of_a_file_can_be_pointed_at() -> None:
    place = fleet_file.place_of(GOOD, ("target", "size", "disk"), name="fleet.yaml")
    assert place == "fleet.yaml:7: target.size.disk"


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["web", "rest", "5%"])
)
_ANY = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_a_fleet_or_bad_input(text: str) -> None:
    with pytest.raises(BadInput):
        fleet_file.read(text, name="fleet.yaml")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_of_a_good_file_is_a_fleet_or_bad_input(data: st.DataObject) -> None:
    import yaml

    tree = yaml.safe_load(GOOD)
    at = tree
    while isinstance(at, (dict, list)) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            at[key] = data.draw(_ANY)
            break
        at = at[key]
    text = yaml.safe_dump(tree, allow_unicode=True)
    assert all(line.isprintable() for line in answer(text).splitlines())


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, 12), st.text(alphabet="[]{}:-*&!|>'\"#%@ \n\tab1?,", max_size=12))
def test_any_cut_and_splice_is_a_fleet_or_bad_input(at: int, length: int, put: str) -> None:
    assert answer(GOOD[:at] + put + GOOD[at + length :]).startswith("fleet.yaml")
