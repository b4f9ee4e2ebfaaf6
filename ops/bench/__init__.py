"""Benchmarks of the engine against the limits of its database: `python -m ops.bench [--quick] [section …]`.

Absolute figures depend on the machine as much as on the code. So every section measures the engine and a yardstick in
one run, and prints the ratio.
"""
