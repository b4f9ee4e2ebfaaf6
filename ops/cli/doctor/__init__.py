"""`outrider doctor`: the command, the checks of configuration and runtime, and the result of a check."""
