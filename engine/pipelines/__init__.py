"""The built-in pipelines, registered by listing."""

from engine.pipeline import Pipeline

pipelines: list[Pipeline] = []
