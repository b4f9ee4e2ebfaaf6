"""Every word of a text is shown, whatever program reads the subtitles."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.pipelines.storyboard.captions import Cue
from engine.pipelines.storyboard.formats import to_srt
from tests.engine.pipelines.storyboard.boards import draw, draw_if_any
from tests.engine.pipelines.storyboard.readers import (
    SRT_READERS,
    by_ffmpeg,
    by_pysubs2,
    by_webvtt_py,
    with_ffmpeg,
    words,
)

CORPUS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("corpus.yaml").read_text())
# pysubs2 reads WebVTT by the rules of SubRip, and turns no entity back into a character. The standard has no mark-up in
# braces and no numbers of cues, and two times are no timing without an arrow, so that WebVTT keeps them.
PYSUBS2_MISREADS = re.compile(r"(?m){|:\d\d\.\d.*:\d\d\.\d|\d{40}$|^\d+$")
# Where nothing looks like mark-up, a file holds the very characters of the text.
PLAIN = ["dashes", "entities", "chess", "quotes", "emoji", "arabic digits", "urdu", "persian"]

# fmt: off
MARK_UP = [
    "<", ">", "</", "<b>", "</b>", "<3", "< b >", "{", "}", "{\\an8}", "{y:i}", "\\N", "\\n", "\\h", "\\", "C:\\new",
    "--", "-->", "->", "00:00:01,000", "0:0:1.5", "1.2.3", "42", "7", "-1.5", "WEBVTT", "NOTE", "&lt;", "&amp;", "<v",
    "<00:00:01.000>", "<!--", "x", "<br>", "<font", "color=red>", "foo", "<<", ">>", "a<b", "{0}", "{{x}}", "٤٢",
    "12:30:45,1", "{\\", "_",
]
# fmt: on


def spoken(text: str) -> list[str]:
    """The words of a text written without spaces are its characters."""
    return list("".join(words(text)))


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 60


@pytest.mark.parametrize("form", ["plain", "markdown"])
@pytest.mark.parametrize("name", CORPUS)
def test_every_word_of_a_subrip_is_read_back_in_order(name: str, form: str) -> None:
    board = draw_if_any(CORPUS[name], format=form)
    if board is not None:
        said = " ".join(scene["narration"] for scene in board["scenes"])
        assert form == "markdown" or spoken(said) == spoken(CORPUS[name])
        for reader, read in SRT_READERS.items():
            assert spoken(read(board["captions"]["srt"])) == spoken(said), reader


@pytest.mark.parametrize("name", CORPUS)
def test_every_word_of_a_webvtt_is_read_back_in_order(name: str) -> None:
    webvtt = draw(CORPUS[name])["captions"]["webvtt"]
    assert spoken(html.unescape(by_webvtt_py(webvtt, "vtt"))) == spoken(CORPUS[name])
    if not PYSUBS2_MISREADS.search(CORPUS[name]):
        assert spoken(html.unescape(by_pysubs2(webvtt, "vtt"))) == spoken(CORPUS[name])


@with_ffmpeg
def test_the_whole_corpus_is_read_back_by_ffmpeg() -> None:
    assert_read_by_ffmpeg("\n\n".join(CORPUS.values()))


@pytest.mark.long
@with_ffmpeg
@pytest.mark.parametrize("name", CORPUS)
def test_every_word_is_read_back_in_order_by_ffmpeg(name: str) -> None:
    assert_read_by_ffmpeg(CORPUS[name])


def assert_read_by_ffmpeg(text: str) -> None:
    captions = draw(text)["captions"]
    for form, read in by_ffmpeg(captions["srt"], "srt").items():
        # FFmpeg writes WebVTT without escapes, so that an entity of the text becomes a character there.
        said = html.unescape(text) if form == "vtt" else text
        assert spoken(html.unescape(read) if form == "vtt" else read) == spoken(said), form
    # FFmpeg 5 doubles the backslashes of a WebVTT, and shows the backslash with which ASS escapes a brace.
    drawn = by_ffmpeg(captions["webvtt"], "vtt")["ass"]
    assert spoken(drawn.replace("\\", "")) == spoken(text.replace("\\", ""))


@pytest.mark.parametrize("name", [name for name, text in CORPUS.items() if text.isascii()])
def test_words_stay_apart(name: str) -> None:
    for reader in SRT_READERS.values():
        assert words(reader(draw(CORPUS[name])["captions"]["srt"])) == words(CORPUS[name])


@pytest.mark.parametrize("name", PLAIN)
def test_text_that_is_no_mark_up_is_written_as_it_is(name: str) -> None:
    captions = draw(CORPUS[name])["captions"]
    lines = [line for line in captions["srt"].split("\n") if line and not re.match(r"\d+$|.* --> ", line)]
    assert " ".join(lines).replace("\u202f", " ").split() == CORPUS[name].replace("\u202f", " ").split()


def test_webvtt_keeps_the_characters_that_it_can_escape() -> None:
    assert "MyValue&lt;String&gt; and {\\an8}" in draw("MyValue<String> and {\\an8}")["captions"]["webvtt"]


@given(texts=st.lists(st.lists(st.sampled_from(MARK_UP), min_size=1, max_size=6), min_size=1, max_size=6))
@settings(derandomize=True, database=None, deadline=None, max_examples=500)
def test_any_mix_of_mark_up_and_lines_is_read_back(texts: list[list[str]]) -> None:
    cues = [
        Cue(at * 2000, at * 2000 + 2000, (" ".join(text[:3]), " ".join(text[3:]))[: 1 + (len(text) > 3)])
        for at, text in enumerate(texts)
    ]
    for reader, read in SRT_READERS.items():
        assert words(read(to_srt(cues))) == [word for text in texts for word in words(" ".join(text))], reader
