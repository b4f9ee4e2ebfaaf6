"""Chaos runs: real processes and real signals. The expected results are kept outside the database."""
