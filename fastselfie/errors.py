"""Exceptions for errors that the user can fix."""


class UserError(Exception):
    """An error that the user can fix: a wrong path, key or file, or a full disk.

    The message is one line: the path or key, what is wrong with it, and what to do. The command
    line prints it without a traceback and exits with status 2. Any other exception is a bug.
    """


class Diverged(UserError):
    """A loss or gradient that is not finite. A learning-rate search tries the next rate."""
