"""The built-in pipelines, registered by listing. They are written as an author's are: against the public API."""

from engine import Pipeline
from engine.pipelines import storyboard

pipelines: list[Pipeline] = [storyboard.storyboard]
