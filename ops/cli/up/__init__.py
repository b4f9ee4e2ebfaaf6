"""`outrider up`: the command, its child processes and its broker."""
