"""The command `outrider`: what runs the processes, and what an operator asks them and the database."""


def main() -> None:
    """Run the command line and exit with its code."""
    from ops.cli.app import run

    run()
