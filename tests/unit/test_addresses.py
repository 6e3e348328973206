"""One way to write where a Redis is, for the records, the messages and the results."""

from __future__ import annotations

import pytest

from orchestrator.addresses import Address, parse, where, with_database
from orchestrator.errors import BadInput

KNOWN = {
    "redis://h": Address(hosts=(("h", 6379),)),
    "redis://h:7000/3": Address(hosts=(("h", 7000),), database=3),
    "redis://h?db=4": Address(hosts=(("h", 6379),), database=4),
    "redis://:p%40%2Fw@[::1]:7000/0": Address(hosts=(("::1", 7000),), password="p@/w"),
    "redis://anna:pw@h/1": Address(hosts=(("h", 6379),), database=1, username="anna", password="pw"),
    "rediss://h": Address(hosts=(("h", 6379),), tls={}),
    "rediss://h/0?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false": Address(
        hosts=(("h", 6379),), tls={"ssl_ca_certs": "/etc/ca.pem", "ssl_check_hostname": False}
    ),
    "rediss://cache.example/0?kept_by=replicas": Address(hosts=(("cache.example", 6379),), tls={}, kept_by="replicas"),
    "unix:///run/a b.sock?db=2": Address(path="/run/a b.sock", database=2),
    "unix://:pw@/run/x.sock": Address(path="/run/x.sock", password="pw"),
    "sentinel://a,b:7/shop": Address(hosts=(("a", 26379), ("b", 7)), master="shop"),
    "sentinels://:pw@a/shop/2?sentinel_password=s&ssl_ca_certs=/ca": Address(
        hosts=(("a", 26379),),
        master="shop",
        database=2,
        password="pw",
        sentinel_password="s",
        tls={"ssl_ca_certs": "/ca"},
    ),
}
WRONG = (
    "",
    "nonsense",
    "http://x:secret@y",
    "redis://",
    "redis://:secret@",
    "redis://x:port/0",
    "redis://x:99999/0",
    "redis://x/0/1",
    "redis://x/shop",
    "redis://x/-1",
    "redis://a,b/0",
    "redis://x?socket_timeout=secret",
    "redis://x?ssl_ca_certs=/ca",
    "redis://x?kept_by=luck",
    "rediss://x?ssl_cert_reqs=perhaps",
    "rediss://x?ssl_check_hostname=perhaps",
    "unix://x/run/y.sock",
    "unix:///run/x.sock?db=x",
    "unix://",
    "sentinel://a",
    "sentinel://a/",
    "sentinel://a//0",
    "sentinel://:sec?ret@a/shop",
    "redis://:sec/ret@a/0",
    "redis://a?x=secret@b",
)


@pytest.mark.parametrize("url", KNOWN)
def test_each_form_says_what_it_means_and_can_be_written_again(url: str) -> None:
    assert parse(url) == KNOWN[url]
    assert parse(parse(url).url()) == KNOWN[url]
    assert "pw" not in repr(parse(url)) and "pw" not in parse(url).where and "pw" not in parse(url).ping


@pytest.mark.parametrize("url", WRONG)
def test_what_is_no_address_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(BadInput, match="no address of a Redis") as told:
        parse(url)
    for secret in ("secret", "sec?ret", "sec/ret", "ret@"):
        assert secret not in str(told.value)


@pytest.mark.parametrize("url", KNOWN)
def test_another_database_is_on_the_same_server(url: str) -> None:
    there = parse(with_database(url, 9))
    assert there.database == 9
    assert there.same_server(parse(url))
    assert (there.password, there.sentinel_password, there.tls) == (
        parse(url).password,
        parse(url).sentinel_password,
        parse(url).tls,
    )


def test_celery_is_told_the_same_in_its_own_words() -> None:
    assert parse("redis://anna:p%40w@h/1").for_celery() == ("redis://anna:p%40w@h:6379/1", None, {})
    assert parse("unix://:pw@/run/x.sock?db=1").for_celery() == (
        "redis+socket://:pw@/run/x.sock?virtual_host=1",
        None,
        {},
    )
    url, tls, options = parse("rediss://h/2?ssl_ca_certs=/ca").for_celery()
    assert (url, tls, options) == (
        "rediss://h:6379/2",
        {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca"},
        {},
    )
    url, tls, options = parse("sentinels://:pw@a,b:7/shop/2?sentinel_password=s&ssl_ca_certs=/ca").for_celery()
    assert url == "sentinel://:pw@a:26379/2;sentinel://:pw@b:7/2"
    assert tls == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca"}
    assert options["master_name"] == "shop"
    assert options["sentinel_kwargs"]["password"] == "s"
    assert options["sentinel_kwargs"]["ssl"] is True


def test_where_tells_a_person_the_address_alone() -> None:
    assert where("redis://:secret@h:1/0?x=y") == "redis://h:1/0"
    assert where("nonsense") == "the given text"
    assert "secret" not in where("redis://h/0?sentinel_password=a@secret")
