"""Hides secrets in log events: fields with their names, and credentials inside text."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from functools import cache
from typing import Any, Final

SECRET: Final = re.compile(r"(?i)(authorization|password|secret|token|api_?key|database_url)")
# Each repetition is bounded or ends where no other begins: otherwise a hostile text could make the search take long.
CREDENTIALS: Final = re.compile(
    r"(?i)(\b\w{1,32}://[^\s:/@]{0,128}:)[^\s/]{0,256}@"
    r"|\b((?:bearer|basic)\s{1,8})[\w.~+/=-]+"
    r"|((?:password|passwd|secret|token|api[-_]?key)\s{0,8}[=:]\s{0,8})[^\s&;,\"']+"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
)
HIDDEN: Final = "[redacted]"
MAX_TEXT: Final = 16_384
"""In characters. A longer field is logged without its middle."""

Event = MutableMapping[str, Any]


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """Hide fields with names of secrets, and credentials inside text."""
    for name in _secret(tuple(event)):
        event[name] = HIDDEN
    for name, value in event.items():
        # Credentials in text stand beside one of these characters. Most fields are ids and names without them.
        if isinstance(value, str) and (" " in value or "=" in value or ":" in value):
            event[name] = CREDENTIALS.sub(_hidden, _short(value))
    return event


def _hidden(found: re.Match[str]) -> str:
    return f"{found[1] or found[2] or found[3] or ''}{HIDDEN}{'@' if found[1] else ''}"


def _short(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"


# The cache is finite, because each call that logs has fixed names.
@cache
def _secret(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if SECRET.search(name)]
