"""Running the engine: the commands, an embedded PostgreSQL, benchmarks."""
