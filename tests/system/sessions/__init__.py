"""What works in which session: `./ops/test --all -n 0 -s tests/system/sessions` prints the table."""
