"""The built-in pipelines. They are written against the public API, as an author's pipelines are."""

from engine import Pipeline
from engine.pipelines import storyboard

pipelines: list[Pipeline] = [storyboard.storyboard]
