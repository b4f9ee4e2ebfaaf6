"""What a session may be like, and what works in it: `pytest --all -s tests/system/sessions` prints the table."""
