"""Tools to run the engine: commands, an embedded PostgreSQL, a harness, benchmarks, chaos runs and dashboards."""
