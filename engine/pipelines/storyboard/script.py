"""Reads a script, as plain paragraphs or Markdown, into titled scenes of words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.deflist import deflist_plugin
from mdit_py_plugins.footnote import footnote_plugin

from engine.pipelines.storyboard.abbreviations import language_of
from engine.pipelines.storyboard.words import (
    BEATS_PER_WORD,
    CLAUSE,
    CLAUSE_ENDS,
    SENTENCE,
    Word,
    beats,
    clean,
    columns,
    join,
    split,
)

SCENE_SECONDS = 45
TITLE_COLUMNS = 42

FRONT_MATTER = re.compile(
    r"\A---[ \t]*\n(?=\S)(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
    r"|\A\+\+\+[ \t]*\n(?:.*\n)*?\+\+\+[ \t]*(?:\n|\Z)"
    r"|\A\{[ \t]*\n(?:(?:[ \t].*)?\n)*\}[ \t]*(?:\n|\Z)"
)
"""YAML, TOML or JSON before the text, as site generators read it."""

# What begins the first paragraph of a block on GitHub: the box of a task, the kind of an alert. The plug-in for tasks
# takes time that grows with the square of their number.
MARKERS = {
    "list_item_open": re.compile(r"\A\[[ xX]\](?:\s+|\Z)"),
    "blockquote_open": re.compile(r"\A\[!(?:NOTE|TIP|IMPORTANT|WARNING|CAUTION)\]\s*"),
}


@dataclass(slots=True)
class Section:
    """The paragraphs under one heading. `title` is empty without a heading."""

    title: str
    paragraphs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scene:
    title: str
    paragraphs: Sequence[Sequence[Word]]

    @cached_property
    def words(self) -> list[Word]:
        return [word for paragraph in self.paragraphs for word in paragraph]

    @property
    def beats(self) -> int:
        return beats(self.words)

    @property
    def narration(self) -> str:
        return "\n\n".join(map(join, self.paragraphs))


def read(content: str, form: str, words_per_minute: int) -> Iterator[Scene]:
    """The script's scenes, each with at least one word to say.

    The text under a heading is one scene, however long. Text without a heading is cut into scenes of about
    SCENE_SECONDS, between paragraphs if possible. A heading with no text of its own makes no scene.
    """
    limit = SCENE_SECONDS * words_per_minute * BEATS_PER_WORD // 60
    content = clean(content)
    language = language_of(content)
    for section in _markdown(content) if form == "markdown" else _plain(content):
        paragraphs = [words for words in (split(text, language) for text in section.paragraphs) if words]
        if section.title and paragraphs:
            yield Scene(section.title, paragraphs)
        elif paragraphs:
            yield from (Scene(_title(group[0]), group) for group in _grouped(paragraphs, limit))


def _plain(content: str) -> Iterator[Section]:
    blocks = groupby(content.splitlines(), key=lambda line: not line.strip())
    yield Section("", [" ".join(lines) for blank, lines in blocks if not blank])


def _markdown(content: str) -> list[Section]:
    """The sections of a Markdown text.

    Dropped: code blocks, HTML, front matter, footnotes, the boxes of tasks, image addresses (not their texts).
    """
    sections = [Section("")]
    outer = container = ""
    for token in _parser().parse(FRONT_MATTER.sub("", content)):
        if token.type == "footnote_block_open":
            # Footnotes, wherever they are written, come last.
            break
        if token.type == "inline" and container == "heading_open":
            sections.append(Section(" ".join(_text(token).split())))
        elif token.type == "inline":
            text = _text(token)
            sections[-1].paragraphs.append(MARKERS[outer].sub("", text) if outer in MARKERS else text)
        else:
            outer, container = container, token.type
    return sections


def _parser() -> MarkdownIt:
    """One for each script: at its first use a parser fills a cache of rules, which threads must not share."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return parser.use(footnote_plugin).use(deflist_plugin)


def _text(token: Token) -> str:
    parts = []
    for child in token.children or []:
        match child.type:
            case "text" | "code_inline":
                parts.append(child.content)
            case "softbreak" | "hardbreak":
                parts.append("\n")
            case "image":
                parts.append(_text(child))
            case "html_inline" if child.content.lower().startswith("<br"):
                parts.append("\n")
            case _:
                pass
    return "".join(parts)


def _grouped(paragraphs: Sequence[Sequence[Word]], limit: int) -> Iterator[list[Sequence[Word]]]:
    scene: list[Sequence[Word]] = []
    size = 0
    for paragraph in paragraphs:
        for piece in _pieces(paragraph, limit):
            if scene and size + beats(piece) > limit:
                yield scene
                scene, size = [], 0
            scene.append(piece)
            size += beats(piece)
    yield scene


def _pieces(paragraph: Sequence[Word], limit: int) -> Iterator[Sequence[Word]]:
    """A paragraph longer than `limit`, cut into even pieces: after a sentence, beyond the limit also after a clause."""
    total = beats(paragraph)
    even = total / max(1, -(-total // limit))
    start = size = 0
    for at, word in enumerate(paragraph, 1):
        size += word.beats
        ends = word.stop >= SENTENCE if size < limit else word.stop >= CLAUSE or size >= limit * 4 // 3
        if size >= even and ends:
            yield paragraph[start:at]
            start, size = at, 0
    if start < len(paragraph):
        yield paragraph[start:]


def _title(words: Sequence[Word]) -> str:
    """The first sentence, or as much of the sentence as fits in a line."""
    line: list[Word] = []
    for word in words:
        if columns(join([*line, word])) >= TITLE_COLUMNS:
            break
        line.append(word)
        if word.stop >= SENTENCE:
            return join(line)
    return (join(line) or words[0].text[: TITLE_COLUMNS // 2]).rstrip(CLAUSE_ENDS) + "…"
