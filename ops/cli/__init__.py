"""The command `outrider`: runs the processes, and answers an operator's questions to them and to the database."""


def main() -> None:
    """Run the command line and exit with its code."""
    from ops.cli.app import run

    run()
