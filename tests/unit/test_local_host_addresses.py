"""Which loopback address a server gets."""

from __future__ import annotations

import socket

import pytest

from providers.errors import NoCapacity, Refused
from providers.local_host import addresses
from providers.local_host.addresses import Addresses, listeners


def test_an_address_in_use_is_not_given_again() -> None:
    pool, used = Addresses("127.250.7.0/24"), {f"127.250.7.{last}" for last in range(9, 255)}
    while len(used) < 254:
        given = pool.take(used, 8080)
        assert given not in used
        used.add(given)
    with pytest.raises(NoCapacity, match=r"no address of 127\.250\.7\.0/24 is left"):
        pool.take(used, 8080)


def test_an_address_with_a_listener_of_somebody_else_is_passed_over() -> None:
    used = {f"127.250.8.{last}" for last in range(2, 255)}
    assert Addresses("127.250.8.0/24").take(used, 8080) == "127.250.8.1"
    with socket.create_server(("127.250.8.1", 0)) as taken:
        assert listeners()["127.250.8.1"] == {taken.getsockname()[1]: 0}
        with pytest.raises(NoCapacity):
            Addresses("127.250.8.0/24").take(used, 8080)


def test_a_port_that_is_taken_everywhere_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "bindable", lambda address, port: False)
    with pytest.raises(NoCapacity, match="who listens on all of them"):
        Addresses("127.64.0.0/16").take(set(), 8080)


@pytest.mark.parametrize("network", ["10.0.0.0/16", "127.0.0.0/30", "127.0.0.1/16", "::1/64", "x"])
def test_a_network_that_does_not_suit_is_refused(network: str) -> None:
    with pytest.raises(Refused, match="network"):
        Addresses(network)
