"""Scripts that nobody would write: any text keeps the rules, in time and in size."""

# ruff: noqa: RUF001 - look-alike punctuation is what these tests are about

from __future__ import annotations

import time
from itertools import cycle, islice

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import PermanentError
from engine.pipelines.storyboard import MAX_SCENES
from tests.engine.pipelines.storyboard.boards import assert_keeps_the_rules, bare, draw, draw_if_any

CONTENT_LIMIT = 256 << 10
OUTPUT_LIMIT = 4 << 20

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=200)
paces = st.integers(80, 300)
marks = st.sampled_from([".", ",", "!", "…", "—", "”", "«", "«", ":", "-", "--", "(", "。", "「", "」"])
spaced_words = st.text("abcéжक्षعא👍🏽&<>\"\\'-", min_size=1, max_size=60)
unspaced_words = st.text("中文、。「」かなカナー（）ไทยเก่าำ\u200bខ្មែរ𠮷a1", min_size=1, max_size=60)
words = st.one_of(marks, spaced_words, unspaced_words)
scripts = st.lists(st.tuples(words, st.sampled_from([" ", " ", " ", "", "\n", "\n\n"])), max_size=120).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)


def fill(pattern: str, size: int = CONTENT_LIMIT) -> str:
    return pattern * (size // len(pattern.encode()))


@given(content=st.one_of(scripts, st.text()), pace=paces)
@fixed
def test_any_text_is_shown_whole_and_keeps_the_rules(content: str, pace: int) -> None:
    board = draw_if_any(content, words_per_minute=pace)
    cues = assert_keeps_the_rules(board) if board else []
    assert bare("".join(line for cue in cues for line in cue.lines)) == bare(content)


@given(
    parts=st.lists(st.one_of(words, st.text("#>-*_`[]()!|\\<&~=+:1. \t\n", max_size=12)), max_size=60),
    pace=paces,
)
@fixed
def test_any_markdown_keeps_the_rules(parts: list[str], pace: int) -> None:
    if board := draw_if_any("".join(parts), format="markdown", words_per_minute=pace):
        assert_keeps_the_rules(board)


HOSTILE = [
    "a",
    "# ",
    ">",
    "> ",
    "[",
    "![",
    "[a](",
    "*a_ ",
    "**a ",
    "`",
    "<a ",
    "<!--",
    "- ",
    "- a\n",
    "- [ ] a\n",
    "^[",
    "[^a]: b\n",
    "a[^1]\n\n[^1]: b\n\n",
    "a\n: b\n",
    "+++\n",
    "{\n",
    "1. ",
    "&amp;",
    "a\n\n",
    "|a",
]
HOSTILE += [
    "\\",
    "~~",
    "\n",
    "---\n",
    "a|b\n-|-\n",
    "(",
    "((中",
    "中",
    "ー",
    "เ",
    "。",
    "ខ",
    ". ",
    "! ",
    "« ",
    "…",
    "😀",
    "a\u00a0",
    "<b>",
    "{b}",
    "{",
    "Mr. ",
    "00:00:01,0 ",
]


@pytest.mark.parametrize("form", ["plain", "markdown"])
@pytest.mark.parametrize("pattern", HOSTILE)
def test_time_is_linear_whatever_is_repeated(pattern: str, form: str) -> None:
    began = time.process_time()
    if board := draw_if_any(fill(pattern, CONTENT_LIMIT // 4), format=form):
        assert_keeps_the_rules(board)
    # A quadratic step over 64 KiB takes minutes; the slowest of these takes 1 s.
    assert time.process_time() - began < 10


@pytest.mark.parametrize("pattern", ["& ", '" ', "&", "中", "😀 ", "a\n\n"])
def test_the_largest_script_fits_in_a_result(pattern: str) -> None:
    board = draw(fill(pattern), words_per_minute=80)
    assert_keeps_the_rules(board)
    assert len(orjson.dumps(board)) < OUTPUT_LIMIT


def test_the_most_scenes_in_the_largest_script_fit_in_a_result_and_one_more_is_refused() -> None:
    headed = "".join(islice(cycle(["# &\n& & & & &\n"]), MAX_SCENES))
    script = headed + fill("& ", CONTENT_LIMIT - len(headed))
    board = draw(script, format="markdown", words_per_minute=80)
    assert len(board["scenes"]) == MAX_SCENES
    assert len(orjson.dumps(board)) < OUTPUT_LIMIT
    with pytest.raises(PermanentError, match="at most 5000"):
        draw("# a\na\n" * (MAX_SCENES + 1), format="markdown")
