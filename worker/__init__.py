"""The worker process: runs pipelines until it is stopped."""
