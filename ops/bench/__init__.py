"""What the engine costs, against what its database allows: `python -m ops.bench [--quick] [section …]`.

Absolute figures say as much of the machine as of the code. So every section measures the thing and its yardstick in
one run, and prints their ratio.
"""
