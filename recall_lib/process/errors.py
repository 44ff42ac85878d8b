"""The errors that end a command with one line, and the exit codes of all commands."""

import signal


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


# After a signal, as shells number them.
INTERRUPTED = 128 + signal.SIGINT
NOT_READ = 128 + signal.SIGPIPE

# What `recall --help`, README.md and deploy/RUNBOOK.md say of each.
EXIT_CODES = {
    0: "done",
    RecallError.exit_code: "an unexpected failure; `RECALL_TRACEBACK=1` shows where",
    UsageError.exit_code: "bad usage or config",
    DataRefused.exit_code: "data refused: too many rejects, or an earlier table is missing or does not match",
    NoInput.exit_code: "no file matches the input, or the log has no rows",
    Busy.exit_code: "another run holds the lock: the same command may succeed later",
    INTERRUPTED: "interrupted",
    NOT_READ: "the program that read the output ended first",
}
