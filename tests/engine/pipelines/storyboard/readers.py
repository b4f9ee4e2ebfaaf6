"""What subtitle readers show of a file: FFmpeg, pysubs2, srt and webvtt-py as they are, VLC's rules restated."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pysubs2
import pytest
import srt
import webvtt

FFMPEG = shutil.which("ffmpeg")
with_ffmpeg = pytest.mark.skipif(
    FFMPEG is None and os.environ.get("TEST_FFMPEG") != "require", reason="ffmpeg is not on PATH"
)


def words(text: str) -> list[str]:
    """The words of a text, however a file had to write them: look-alikes turned back, invisible characters dropped."""
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", seen).split()


def by_ffmpeg(file: str, form: str) -> dict[str, str]:
    """What FFmpeg makes of a file: its SubRip, its WebVTT, and its ASS as libass draws that."""
    assert FFMPEG
    with TemporaryDirectory() as folder:
        source = Path(folder, f"in.{form}")
        source.write_bytes(file.encode())
        outputs = {name: Path(folder, f"out.{name}") for name in ("srt", "vtt", "ass")}
        subprocess.run(
            [FFMPEG, "-v", "fatal", "-nostdin", "-i", source, *outputs.values()], check=True, timeout=60
        )
        read = {name: output.read_bytes().decode() for name, output in outputs.items()}
    return {
        "srt": "\n".join(_payload(read["srt"])),
        "vtt": "\n".join(_payload(read["vtt"])),
        "ass": "\n".join(
            map(_drawn, re.findall(r"^Dialogue: (?:[^,]*,){9}(.*)$", read["ass"], re.MULTILINE))
        ),
    }


def _payload(file: str) -> Iterator[str]:
    """The lines after each timing, up to a blank line. What FFmpeg wrote has a blank line after every cue."""
    shown = False
    for line in file.split("\n"):
        if re.match(r"(\d\d:)?\d\d:\d\d[.,]\d{3} --> ", line):
            shown = True
        elif not line:
            shown = False
        elif shown:
            yield line


def _drawn(text: str) -> str:
    """libass (ass_parse.c): braces hide what they hold, \\N and \\n break, \\h is a space, \\{ is a brace."""
    text = re.sub(r"(?<!\\){[^}]*}", "", text)
    return re.sub(r"\\([Nnh])", " ", text).replace("\\{", "{").replace("\\}", "}")


def by_pysubs2(file: str, form: str) -> str:
    return "\n".join(event.plaintext for event in pysubs2.SSAFile.from_string(file, format_=form))


def by_srt(file: str) -> str:
    return "\n".join(subtitle.content for subtitle in srt.parse(file))


def by_webvtt_py(file: str, form: str) -> str:
    captions = webvtt.WebVTT.from_string(file) if form == "vtt" else webvtt.from_buffer(StringIO(file), "srt")
    return "\n".join(caption.text for caption in captions.captions)


def by_vlc(file: str) -> str:
    """VLC 3 and 4 (demux/subtitle.c, codec/subsdec.c): what they hide, hidden."""
    blocks = [block.split("\n", 2)[2] for block in file.rstrip("\n").split("\n\n")]
    return "\n".join(map(_vlc_shows, blocks))


def _vlc_shows(text: str) -> str:
    text = re.sub(r"{(?:\\|.:)[^}]*}", "", text, flags=re.DOTALL)
    # A tag is a letter after `<` and spaces. It reaches to the next `>`, or to the end.
    text = re.sub(r"</? *[A-Za-z][^>]*(?:>|\Z)", "", text)
    return re.sub(r"\\n", "\n", re.sub(r"\\h", " ", text, flags=re.IGNORECASE), flags=re.IGNORECASE)


SRT_READERS: dict[str, Callable[[str], str]] = {
    "pysubs2": lambda file: by_pysubs2(file, "srt"),
    "srt": by_srt,
    "webvtt-py": lambda file: by_webvtt_py(file, "srt"),
    "VLC's rules": by_vlc,
}
