"""Names of schemas that are legal and distinct in every language that clients are generated for."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORD = re.compile(r"[A-Za-z0-9]+")


class Names:
    """Gives out names that differ in more than case: generators name files, too, by them."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {each.lower() for each in taken}

    def new(self, *parts: str) -> str:
        """`parts` in PascalCase, with a number if the name is taken."""
        name = "".join(pascal(part) for part in parts)
        if name[0].isdigit():
            name = f"Preset{name}"
        found, n = name, 1
        while found.lower() in self._taken:
            n += 1
            found = f"{name}{n}"
        self._taken.add(found.lower())
        return found


def pascal(text: str) -> str:
    """The words of `text`, each with a capital: `my-preset_2` → `MyPreset2`."""
    return "".join(word[0].upper() + word[1:] for word in WORD.findall(text))
