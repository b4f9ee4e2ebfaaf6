"""The built-in pipelines, registered by listing."""

from engine.pipeline import Pipeline
from engine.pipelines import storyboard

pipelines: list[Pipeline] = [storyboard.storyboard]
