"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def installed() -> str:
    """The installed version, or "0" for a checkout that is not installed."""
    try:
        return version("outrider")
    except PackageNotFoundError:
        return "0"
