"""A script as scenes: what is narrated, under which title, for how long."""

# ruff: noqa: RUF001 - look-alike punctuation is what these tests are about

from __future__ import annotations

import pytest
from pydantic import ValidationError

from engine.errors import PermanentError
from engine.pipeline import load_pipelines
from engine.pipelines.storyboard import StoryboardMetadata
from tests.engine.pipelines.storyboard.boards import MARKDOWN, TEXTS, Running, assert_keeps_the_rules, draw


def narrated(script: str, form: str = "markdown") -> str:
    return "|".join(harness["narration"] for harness in draw(script, format=form)["scenes"])


def test_it_is_built_in() -> None:
    declared = load_pipelines([])["storyboard"]
    assert not declared.is_async
    assert declared.metadata is StoryboardMetadata


@pytest.mark.parametrize(
    "wrong",
    [
        {"words_per_minute": 79},
        {"words_per_minute": 301},
        {"words_per_minute": "150"},
        {"words_per_minute": True},
        {"format": "html"},
        {"pace": 150},
    ],
)
def test_metadata_beyond_its_limits_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StoryboardMetadata.model_validate(wrong)


@pytest.mark.parametrize("language", TEXTS)
def test_plain_text_is_cut_into_scenes_of_at_most_a_minute(language: str) -> None:
    scenes = draw(TEXTS[language] * 5)["scenes"]
    lengths = [harness["end"] - harness["start"] for harness in scenes]
    assert all(length <= 61 for length in lengths)
    assert sum(lengths) / len(lengths) > 20


def test_paragraphs_that_fit_in_a_scene_are_not_cut() -> None:
    paragraphs = [
        f"This is the short paragraph number {n}. It has two sentences, both short." for n in range(40)
    ]
    scenes = draw("\n\n".join(paragraphs))["scenes"]
    assert [text for harness in scenes for text in harness["narration"].split("\n\n")] == paragraphs
    assert 4 <= len(scenes) <= 8


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    sentence = "Every sentence of this very long paragraph ends with a stop."
    scenes = draw(" ".join([sentence] * 100))["scenes"]
    assert len(scenes) > 5
    assert all(harness["narration"].endswith("stop.") for harness in scenes)


def test_a_scene_without_a_heading_is_titled_by_its_first_words() -> None:
    assert draw("A short one. And more.")["scenes"][0]["title"] == "A short one."
    long = draw(TEXTS["english"])["scenes"][0]["title"]
    assert long == "Alice was beginning to get very tired of…"
    assert len(draw("x" * 1000)["scenes"][0]["title"]) <= 42


def test_headings_title_the_scenes_and_are_not_narrated() -> None:
    board = draw(MARKDOWN, format="markdown")
    assert_keeps_the_rules(board)
    titles = [harness["title"] for harness in board["scenes"]]
    assert titles == [
        "Before the first heading stands a short…",
        "Why an outbox?",
        "Cost",
        "Setext titles work too",
    ]


def test_only_mark_up_is_dropped() -> None:
    text = narrated(MARKDOWN)
    for kept in (
        "a short greeting",
        "a database and sends a message",
        "see the usual account or https://example.com/outbox.",
        "“What happens to the message?” asks the quote, over two lines.",
        "A service, a table and a broker",
        "with inline code and a hard break.",
        "nested,\n\nnumbered, and struck out.",
        "enqueue\n\nweb\n\npublish\n\nrelay",
        "One word and another, <escaped> & *starred*.",
    ):
        assert kept in text
    for dropped in (
        "print",
        "indented code",
        "comment",
        "HTML block",
        "nobody",
        "c=d",
        "**",
        "~~",
        "diagram",
        "---",
    ):
        assert dropped not in text


def test_a_long_section_stays_one_scene_under_its_heading() -> None:
    script = "\n\n".join(f"## Part {n}\n\n{TEXTS['english']}" for n in range(3))
    scenes = draw(script, format="markdown")["scenes"]
    assert [harness["title"] for harness in scenes] == ["Part 0", "Part 1", "Part 2"]
    assert scenes[2]["narration"].split() == TEXTS["english"].split()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("---\ntitle: no\n---\nBody", "Body"),
        ("---\n\nA break, not front matter\n\n---\n\nmore", "A break, not front matter\n\nmore"),
        ("---\nnever closed", "never closed"),
        ("# One #\nsaid\n\n#\n\nstill said", "said|still said"),
        ("**bo**ld, __underlined__ and snake_case", "bold, underlined and snake_case"),
        ("[text][1]\n\n[1]: https://example.com 'title'", "text"),
        ("- a\n- b\n\n  c", "a\n\nb\n\nc"),
        ("+++\ntitle = 'no'\n+++\nBody", "Body"),
        ("+++\nnever closed", "+++ never closed"),
        ('{\n  "title": "no",\n  "tags": ["a"]\n}\n\nBody', "Body"),
        ("{\nThis is text.\n}", "{ This is text. }"),
        (
            "A claim[^1], another[^long].\n\n[^1]: No.\n[^long]: No\n\n    and no.\n\nMore",
            "A claim, another.\n\nMore",
        ),
        ("An aside^[not said] here", "An aside here"),
        ("No note[^9] is written", "No note[^9] is written"),
        (
            "- [ ] buy milk\n- [x] sell cow\n- [X]\n- [link](x) stays\n\n[ ] not a task",
            "buy milk\n\nsell cow\n\nlink stays\n\n[ ] not a task",
        ),
        ("1. [ ] first\n   [x] not a box", "first [x] not a box"),
        ("Term\n: What it means\n: And more", "Term\n\nWhat it means\n\nAnd more"),
        ("> [!NOTE]\n> Take care", "Take care"),
        ("[ref]: http://example.com\n\n<!-- hidden -->\n\nsaid", "said"),
    ],
)
def test_markdown(script: str, said: str) -> None:
    assert narrated(script) == said


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("\ufeffwith\r\na  byte\torder\u00a0mark\r\n\r\nand CRLF", "with a byte order\u00a0mark\n\nand CRLF"),
        ("# *Nothing* is [mark-up](here)", "# *Nothing* is [mark-up](here)"),
        (
            "soft\u00adhyphens, zero\u200bwidth and \u202eoverrides\u202c go",
            "softhyphens, zerowidth and overrides go",
        ),
        ("bell\x07 and \x1b[31mescape", "bell and [31mescape"),
        ("می\u200cخواهم 👩\u200d🚀 e\u0301", "می\u200cخواهم 👩\u200d🚀 e\u0301"),
    ],
)
def test_plain_text_is_narrated_word_for_word(script: str, said: str) -> None:
    assert narrated(script, "plain") == said


@pytest.mark.parametrize(
    ("script", "form"),
    [
        (" \n\t\u00a0", "plain"),
        ("\u200b\ufeff\x00", "plain"),
        ("# Only a title", "markdown"),
        ("***", "markdown"),
    ],
)
def test_nothing_to_narrate_fails_for_good(script: str, form: str) -> None:
    with pytest.raises(PermanentError, match="no words to narrate"):
        draw(script, format=form)


def test_progress_rises_to_one_scene_by_scene() -> None:
    run = Running()
    board = draw(TEXTS["english"], run)
    fractions = [fraction for fraction, _ in run.progressed]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert len(run.progressed) == len(board["scenes"]) + 1


def test_a_cancelled_run_stops_at_the_next_scene() -> None:
    run = Running(cancel_at="scene 3 of 16")
    assert draw(TEXTS["english"], run) is None
    assert run.progressed[-1] == (3 / 16, "scene 3 of 16")
