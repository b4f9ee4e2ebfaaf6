"""What authors write is checked when it is declared and when it is loaded, not when a job meets it."""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine.errors import ConfigurationError
from engine.pipeline import Pipeline, Registry, load_pipelines, pipeline


async def on_the_loop(_job: Any, _run: Any) -> None: ...


def plain(_job: Any, _run: Any) -> None: ...


class Caller:
    async def __call__(self, _job: Any, _run: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (on_the_loop, True),
        (plain, False),
        (functools.partial(on_the_loop), True),
        (Caller(), True),
        (print, False),
        (functools.partial(Caller()), True),
        (staticmethod(on_the_loop), True),
        (staticmethod(functools.partial(staticmethod(on_the_loop))), True),
        (Caller().__call__, True),
        (functools.partial(plain), False),
        (functools.wraps(on_the_loop)(lambda job, run: asyncio.run(on_the_loop(job, run))), False),
    ],
)
def test_an_async_function_is_known_however_it_is_wrapped(function: Any, is_async: bool) -> None:
    assert Pipeline(preset="p", function=function).is_async is is_async


@pytest.mark.parametrize(("function", "runs"), [(on_the_loop, "task"), (plain, "process")])
def test_a_plain_function_runs_in_a_process_and_an_async_one_on_the_loop(function: Any, runs: str) -> None:
    assert pipeline("p")(function).runs == runs


def a_generator(_job: Any, _run: Any) -> Any:
    yield


async def an_async_generator(_job: Any, _run: Any) -> Any:
    yield


class Yielding:
    def __call__(self, _job: Any, _run: Any) -> Any:
        yield


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (a_generator, "a generator"),
        (an_async_generator, "a generator"),
        (functools.partial(an_async_generator), "a generator"),
        (staticmethod(a_generator), "a generator"),
        (Yielding(), "a generator"),
        (Caller, "a class"),
        (None, "a NoneType, which cannot be called"),
        (classmethod(plain), "a classmethod, which cannot be called"),
        (on_the_loop(None, None), "a coroutine, which cannot be called"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_what_returns_no_result_is_refused_where_it_is_declared(function: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"pipeline 'p': function: is {why}"):
        pipeline("p")(function)


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": ""},
        {"preset": "Upper"},
        {"preset": "-p"},
        {"preset": "p" * 64},
        {"preset": "p\n"},
        {"timeout": 0.5},
        {"timeout": 86_401},
        {"timeout": float("nan")},
        {"max_attempts": 0},
        {"max_attempts": 26},
        {"backoff": -1},
        {"backoff": 601},
    ],
)
def test_a_declaration_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    known: dict[str, Any] = {"preset": "p", "function": plain}
    with pytest.raises(ConfigurationError):
        Pipeline(**(known | wrong))


def test_a_docstring_is_the_description_unless_one_is_given() -> None:
    def documented(_job: Any, _run: Any) -> None:
        """Tells."""

    assert pipeline("p")(documented).description == "Tells."
    assert pipeline("p", description="Says.")(documented).description == "Says."


def test_two_pipelines_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        Registry([Pipeline(preset="p", function=plain), Pipeline(preset="p", function=plain)])


def module(name: str, monkeypatch: pytest.MonkeyPatch, **members: Any) -> str:
    made = ModuleType(name)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)
    return name


def test_a_module_adds_its_pipelines_to_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Pipeline(preset="mine", function=plain)
    found = load_pipelines([module("some_pipelines", monkeypatch, pipelines=[mine])])
    assert found["mine"] is mine
    assert "storyboard" in found


@pytest.mark.parametrize("members", [{}, {"pipelines": "mine"}, {"pipelines": [plain]}, {"pipelines": ()}])
def test_a_module_that_does_not_list_pipelines_is_refused(
    monkeypatch: pytest.MonkeyPatch, members: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="some_pipelines"):
        load_pipelines([module("some_pipelines", monkeypatch, **members)])


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.module"):
        load_pipelines(["no.such.module"])


@pytest.mark.parametrize(
    ("raising", "told"),
    [('{}["token"]', r"KeyError: 'token'"), ('raise SystemExit("no token")', "SystemExit: no token")],
)
def test_a_module_that_raises_at_its_import_is_named_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raising: str, told: str
) -> None:
    (tmp_path / "raising_conf.py").write_text(f"\n\n{raising}\n")
    (tmp_path / "raising_pipelines.py").write_text("import raising_conf\n\npipelines = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigurationError, match=rf"raising_pipelines: {told} \(.*/raising_conf\.py, line 3\)"
    ):
        load_pipelines(["raising_pipelines"])
