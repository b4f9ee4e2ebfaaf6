"""Metadata whose schemas are hard to describe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from engine.pipeline import Metadata


class Cat(Metadata):
    kind: Literal["cat"]
    lives: int = 9


class Dog(Metadata):
    """A dog."""

    kind: Literal["dog"]
    friends: list[Dog] = []  # noqa: RUF012 - pydantic copies it


class Odd(Metadata):
    """Members that generators and linters are known to stumble over."""

    class_: str = Field("x", alias="class")
    at: str = Field(alias="@type")
    properties: dict[str, Any] = Field({"properties": {"a": {"default": 1}}}, description='say """hi""" */')
    pair: tuple[int, str] = (1, "a")
    huge: int = Field(0, ge=0, lt=2**64)
    finite: float = Field(0, lt=float("inf"))


class Zoo(Metadata):
    model_config = ConfigDict(title="Job")

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    other: Cat | None = None
    weight: float = Field(1.5, description="in kg")
