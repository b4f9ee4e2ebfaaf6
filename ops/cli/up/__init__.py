"""`outrider up`: the command, the processes that it keeps running, and its broker."""
