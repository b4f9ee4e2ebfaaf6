"""Faults on purpose: real processes, real signals, and the truth kept outside the database."""
