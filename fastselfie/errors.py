"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in the input: a path, a key, a file or a full disk.

    The message is a single line that names the path or key and the way out. The command line
    prints it without a traceback and leaves with status 2; anything else is a fault of ours.
    """


class Diverged(UserError):
    """A loss or gradient that is not finite. A search of the learning rate goes on to the next."""
