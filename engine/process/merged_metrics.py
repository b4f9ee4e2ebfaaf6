"""One page of metrics for a supervisor and its processes: every series has the label `process`.

It is the number of the place, 0 for the supervisor. A process that is started again has the number of the one before,
so that its counters begin anew in the same series, as rate() and increase() expect.

The pages are merged as text, line by line: to parse and to write them anew takes 70 ms of CPU for each process.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

SUPERVISOR: Final = "0"
END: Final = "# EOF"
"""The last line of a page in the format OpenMetrics."""
NAME: Final = re.compile(r'\{"(?:[^"\\]|\\.)*"|[^ {]+')
"""The name at the start of a sample: in quotes and within the braces if it has other characters than usual."""

Pages = Callable[[str], Awaitable[Mapping[str, str]]]
"""The header Accept → the page of each process that answers, by its number."""


@dataclass(slots=True)
class _Family:
    """The lines of a metric: what describes it, once, and its samples of all processes."""

    head: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def merged_handler(pages: Pages) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A handler that shows this process's metrics together with the `pages` of its processes."""

    async def handle(request: web.Request) -> web.StreamResponse:
        accept = ",".join(request.headers.getall(hdrs.ACCEPT, []))
        encode, content_type = choose_encoder(accept)
        found = await pages(accept)
        page = merge({SUPERVISOR: encode(REGISTRY).decode(), **found})
        response = web.Response(body=page.encode(), headers={hdrs.CONTENT_TYPE: content_type})
        response.enable_compression()
        return response

    return handle


def merge(pages: Mapping[str, str]) -> str:
    """One page of `pages`, all in the same format. A family's lines stand together, as both formats want it."""
    families: dict[str, _Family] = {}
    for process, page in pages.items():
        _add(families, process, page)
    lines = [line for family in families.values() for line in (*family.head, *family.samples)]
    ends = [END] if any(page.endswith(f"{END}\n") for page in pages.values()) else []
    return "\n".join([*lines, *ends, ""])


def _add(families: dict[str, _Family], process: str, page: str) -> None:
    known = set(families)
    family = _Family()
    # Nothing else ends a line: what splitlines() takes for an end may stand in a label's value.
    for line in page.split("\n"):
        if line.startswith("# ") and line != END:
            name = line.split(" ", 3)[2]
            family = families.setdefault(name, _Family())
            if name not in known:
                family.head.append(line)
        elif line and line != END:
            family.samples.append(_labelled(line, process))


def _labelled(sample: str, process: str) -> str:
    """The line of a sample with the label `process` before its others."""
    name = NAME.match(sample)
    if name is None:
        return sample
    label, rest = f'process="{process}"', sample[name.end() :]
    if name[0].startswith("{"):
        return f"{name[0]},{label}{rest}"
    return f"{name[0]}{{{label},{rest[1:]}" if rest.startswith("{") else f"{name[0]}{{{label}}}{rest}"
