"""The errors that end a command with one line and a documented exit code."""


class RecallError(Exception):
    """A failure whose message says the cause and the next step."""

    exit_code = 1


class UsageError(RecallError):
    """Bad command line or config; raised before any Spark session starts."""

    exit_code = 2


class DataRefused(RecallError):
    """The data, or what an earlier stage published, cannot be used as it is."""

    exit_code = 3


class NoInput(RecallError):
    """No file matches the input path, or the log has no row at all."""

    exit_code = 4


class Busy(RecallError):
    """Another run holds what this one needs: the same command may succeed later (EX_TEMPFAIL)."""

    exit_code = 75
