"""The exception for mistakes that the user can fix."""


class UserError(Exception):
    """A mistake in what the user gave. The message names the field or file, the value and how to fix it.

    `common.cli.guard` prints it without a traceback and exits with code 2.
    """
