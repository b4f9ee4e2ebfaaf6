"""Headers that are lists: a comma in quotes is no separator, and what is not understood is ignored."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from web.wire.parsing import matches, preferred_wait


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([], None),
        (["wait=5"], 5),
        (["Wait=5"], 5),
        (["WAIT = 5"], 5),
        (['wait="5"'], 5),
        (["wait=5; x=y"], 5),
        (['wait=5;x="a, wait=9"'], 5),
        (["wait=0"], 0),
        (["wait=007"], 7),
        (["wait=30"], 30),
        (["wait=31"], 30),
        (["wait=10000000000"], 30),
        (["wait=" + "9" * 8000], 30),
        (["wait=" + "0" * 8000 + "5"], 5),
        (['foo="a, wait=2", wait=1'], 1),
        (['foo="a\\", wait=2", wait=1'], 1),
        (['foo="a\\\\", wait=2'], 2),
        (["wait=3, wait=4"], 3),
        (["respond-async, wait=4, return=minimal"], 4),
        (["respond-async", "handling=lenient,wait=6", "wait=7"], 6),
        ([",, ,wait=5,"], 5),
        (["\twait=5\t"], 5),
        # The first `wait` is the one that is meant.
        (["wait=x, wait=4"], None),
        (["wait, wait=4"], None),
        (["wait;a=b, wait=4"], None),
        (["awaiting=1, wait-for=2, wait.=3, xwait=4"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=1e1"], None),
        (["wait=+5"], None),
        (["wait=5 6"], None),
        (["wait=1_0"], None),
        (["wait=٣"], None),
        (["wait="], None),
        (['wait=""'], None),
        (['wait="5'], None),
        (["wait='5'"], None),
        (['wait=5"'], None),
        # A line with a quote that does not end is no list. The next line is one.
        (['foo="a, wait=2'], None),
        (['foo="a, wait=2', "wait=3"], 3),
        ([" " * 8000 + "x"], None),
        (['"' * 7999], None),
        (['"\\' * 4000], None),
        (["\xff\xfe=\xff, wait=2"], 2),
    ],
    ids=lambda given: ascii(given)[:40],
)
def test_the_first_wait_of_a_list_of_preferences_is_served_up_to_30_seconds(
    lines: list[str], seconds: int | None
) -> None:
    request = make_mocked_request("GET", "/", CIMultiDict([("Prefer", line) for line in lines]))
    assert preferred_wait(request) == seconds


@pytest.mark.parametrize(
    ("lines", "same"),
    [
        (['"1.0"'], True),
        (['W/"1.0"'], True),
        (["*"], True),
        (["  *  "], True),
        (['"a,b", "1.0"'], True),
        (['"a", "b"', 'W/"1.0"'], True),
        (['"\\", "1.0"'], True),
        (['"a" , ,"1.0",'], True),
        ([], False),
        ([""], False),
        (['"1.1"'], False),
        (["1.0"], False),
        (['w/"1.0"'], False),
        (['W/ "1.0"'], False),
        (['x"1.0"'], False),
        (['"1.0"x'], False),
        (['"a""1.0"'], False),
        (['"a, "1.0"'], False),
        (['x", "1.0", "y'], False),
        (['*, "a"'], False),
        (["**"], False),
        (['"*"'], False),
        (['"' * 7999], False),
    ],
    ids=lambda given: ascii(given)[:40],
)
def test_a_tag_matches_if_it_is_an_element_of_the_list(lines: list[str], same: bool) -> None:
    request = make_mocked_request("GET", "/", CIMultiDict([("If-None-Match", line) for line in lines]))
    assert matches(request, '"1.0"') is same
