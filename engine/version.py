"""The version that runs, as packages know it."""

from importlib.metadata import PackageNotFoundError, version


def installed() -> str:
    """The installed version; "0" from a checkout that is not installed."""
    try:
        return version("outrider")
    except PackageNotFoundError:
        return "0"
