"""Who makes room for a newcomer, and what counts as one address."""

from __future__ import annotations

import pytest

from engine.process.http.admission import Full, Limits, OpenConnections, address_of


def opened(*names: str, connections: int = 4, per_address: int = 2) -> OpenConnections[str]:
    """Connections named by their address and a letter."""
    found: OpenConnections[str] = OpenConnections(Limits(connections, per_address))
    for name in names:
        assert found.admit(name, name[:-1]) is None
    return found


def test_beyond_its_address_cap_a_newcomer_replaces_the_longest_silent_of_its_address() -> None:
    open_ = opened("other a", "mine a", "mine b")
    assert open_.admit("mine c", "mine ") == "mine a"
    assert open_.admit("mine d", "mine ") == "mine b"
    assert len(open_) == 3


def test_beyond_the_cap_of_all_a_newcomer_replaces_the_longest_silent_of_all() -> None:
    open_ = opened("1a", "2a", "3a", "1b")
    assert open_.admit("4a", "4") == "1a"
    assert open_.admit("5a", "5") == "2a"
    assert len(open_) == 4


def test_the_silent_make_room_before_the_idle_and_those_by_the_time_they_have_waited() -> None:
    open_ = opened("1a", "1b", "2a", "2b")
    for each in ("1a", "2a", "1b", "2b"):
        open_.busy(each)
    open_.idle("2a")
    open_.idle("1a")
    open_.silent("2b")
    assert [open_.admit(each, each) for each in ("x", "y", "z")] == ["2b", "x", "y"]
    open_.busy("z")
    assert [open_.admit("2c", "2"), open_.admit("1c", "1")] == ["2a", "1a"]


def test_a_request_in_flight_is_never_given_up() -> None:
    open_ = opened("1a", "1b", "2a", "2b")
    for each in ("1a", "1b", "2a", "2b"):
        open_.busy(each)
    for address in ("1", "3"):
        with pytest.raises(Full):
            open_.admit("new", address)
    assert open_.longest_waiting() is None
    assert len(open_) == 4


def test_what_has_left_is_not_counted_and_counts_once() -> None:
    open_ = opened("1a", "1b")
    assert open_.remove("1a")
    assert not open_.remove("1a")
    open_.idle("1a")
    assert open_.admit("1c", "1") is None
    assert open_.admit("1d", "1") == "1b"
    for each in ("1c", "1d"):
        open_.remove(each)
    assert (len(open_), open_.everyone(), open_._by_address) == (0, [], {})


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::"),
        (("2001:db8:1:2::9", 5, 0, 0), "2001:db8:1:2::"),
        (("2001:db8:1:3::9", 5, 0, 0), "2001:db8:1:3::"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::"),
        (("::1", 5, 0, 0), "::"),
        (None, ""),
        ("", ""),
        ((), ""),
    ],
)
def test_an_ipv6_client_is_its_network_and_a_mapped_address_the_ipv4_one(peer: object, address: str) -> None:
    assert address_of(peer) == address
