"""A process without metrics, for comparison: `python -m ops.bench.dark MODULE [argument …]` runs it as `-m` does."""

from __future__ import annotations

import runpy
import sys
from typing import Any

from prometheus_client import Counter, Gauge

from engine.telemetry import instruments
from engine.telemetry.instruments import Histogram


def _nothing(*_: Any, **__: Any) -> None: ...


# Replaced before the module is imported, because the module keeps the methods of labelled children.
for _metric, _methods in (
    (Counter, ("inc",)),
    (instruments.Counter, ("inc",)),
    (Gauge, ("inc", "dec", "set", "set_to_current_time")),
    (Histogram, ("observe", "traced")),
):
    for _method in _methods:
        setattr(_metric, _method, _nothing)

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
