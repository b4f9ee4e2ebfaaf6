"""`outrider doctor`: the command, its checks of the configuration and of what runs, and how a check says its result."""
