"""Words as subtitles: cut into cues, timed, broken into lines.

A cue has at most two lines of LINE_COLUMNS and stays for 1 to 7 seconds. A word wider than a line has a line of its
own, uncut. Paragraphs, such as the items of a list, share no line. If a cue's words are said before they can be read,
or in less than a second, the narration waits for the cue to end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from engine.pipelines.storyboard.words import BEATS_PER_WORD, KEEP, PARAGRAPH, SENTENCE, Word, join

LINE_COLUMNS = 42
CUE_COLUMNS = 2 * LINE_COLUMNS
SHORTEST_MS, LONGEST_MS = 1_000, 7_000
COLUMN_MS = 50
"""Twenty characters a second are read at most, ten wide ones, as broadcasters ask."""
READING_PACE = 150
"""Words a minute. Who asks for a faster narration has to read faster, in the same proportion."""


class Cue(NamedTuple):
    """Lines on screen from `start` to `end`, in milliseconds."""

    start: int
    end: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Subtitler:
    """The cues of one narration, scene after scene: each starts where the last one ended."""

    def __init__(self, words_per_minute: int, *, apart: bool = True) -> None:
        """`apart`: whether each paragraph begins a line."""
        self._pace = words_per_minute
        self._apart = apart
        # The clock counts 1/pace milliseconds. A beat is a whole number of those, so nothing drifts.
        self._clock = 0
        self._beat = 60_000 // BEATS_PER_WORD

    def cues(self, words: Sequence[Word]) -> Iterator[Cue]:
        """The cues that show every word once, in order. No cue holds words of two scenes."""
        shortest, longest = SHORTEST_MS * self._pace, LONGEST_MS * self._pace
        layout = _Layout(words, -(-shortest // self._beat), longest // self._beat, apart=self._apart)
        column = COLUMN_MS * min(self._pace, READING_PACE)
        begin = 0
        while begin < len(words):
            end = layout.cue_end(begin)
            start = self._milliseconds
            read = min(layout.width(begin, end) * column, longest)
            self._clock += max(shortest, read, layout.beats(begin, end) * self._beat)
            yield Cue(start, self._milliseconds, layout.lines(begin, end))
            begin = end

    @property
    def _milliseconds(self) -> int:
        return (self._clock + self._pace // 2) // self._pace


class _Layout:
    """Where the words of a scene may be cut. A range of words includes the index `begin` and excludes `end`."""

    def __init__(self, words: Sequence[Word], shortest: int, longest: int, *, apart: bool) -> None:
        """`shortest` and `longest` are the bounds of a cue, in beats."""
        self._words = words
        self._shortest = shortest
        self._longest = longest
        self._columns = [0, *accumulate(len(word.space) + word.columns for word in words)]
        self._beats = [0, *accumulate(word.beats for word in words)]
        self._tails = self._to_sentence_end()
        self._paragraph_ends = self._to_paragraph_end() if apart else [len(words)] * len(words)

    def beats(self, begin: int, end: int) -> int:
        return self._beats[end] - self._beats[begin]

    def cue_end(self, begin: int) -> int:
        """The best end of a cue within two lines and within the time of a cue."""
        said = self._beats[begin]
        last = bisect_right(self._beats, said + self._longest, begin) - 1
        last = max(begin + 1, min(last, self._line_end(self._line_end(begin))))
        return max(range(begin + 1, last + 1), key=lambda end: self._merit(begin, end))

    def lines(self, begin: int, end: int) -> tuple[str, ...]:
        """One line if the words fit, else two lines, as even as a good place to break allows."""
        if self._fits(begin, end):
            return (join(self._words[begin:end]),)
        middle = min(
            (at for at in range(begin + 1, end) if self._fits(begin, at) and self._fits(at, end)),
            key=lambda at: (
                abs(self.width(begin, at) - self.width(at, end)) / LINE_COLUMNS - self._words[at - 1].stop
            ),
        )
        return join(self._words[begin:middle]), join(self._words[middle:end])

    def _merit(self, begin: int, end: int) -> float:
        """How good an end is: at a stop, with full lines, and with enough left of a sentence that the end breaks."""
        stop, width = self._words[end - 1].stop, self.width(begin, end)
        left = width if stop >= SENTENCE else self._tails[end] or width
        merit = stop + min(width, left, CUE_COLUMNS) / CUE_COLUMNS
        if self.beats(begin, end) < self._shortest:
            merit -= 3
        return merit - 2 if 0 < self.beats(end, len(self._words)) < self._shortest else merit

    def _to_sentence_end(self) -> list[int]:
        """For each word, the columns from there to the end of its sentence."""
        tails = [0]
        for word in reversed(self._words):
            tails.append(len(word.space) + word.columns + (0 if word.stop >= SENTENCE else tails[-1]))
        return tails[::-1]

    def _to_paragraph_end(self) -> list[int]:
        """For each word, the end of its paragraph."""
        ends = [len(self._words)]
        for at in range(len(self._words), 0, -1):
            ends.append(at if self._words[at - 1].stop == PARAGRAPH else ends[-1])
        return ends[:0:-1]

    def _line_end(self, begin: int) -> int:
        """The end of the longest line that starts here, before words that hold together if they don't fit."""
        if begin == len(self._words):
            return begin
        full = self._columns[begin] + len(self._words[begin].space) + LINE_COLUMNS
        longest = max(begin + 1, bisect_right(self._columns, full, begin) - 1)
        longest = min(longest, self._paragraph_ends[begin])
        return next((end for end in range(longest, begin, -1) if self._words[end - 1].stop != KEEP), longest)

    def _fits(self, begin: int, end: int) -> bool:
        narrow = end - begin == 1 or self.width(begin, end) <= LINE_COLUMNS
        return narrow and end <= self._paragraph_ends[begin]

    def width(self, begin: int, end: int) -> int:
        return self._columns[end] - self._columns[begin] - len(self._words[begin].space)
