"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: the message names the field or file, the value and the mend.

    `common.cli.guard` prints it without a traceback and exits with code 2.
    """
