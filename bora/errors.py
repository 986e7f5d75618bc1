"""The one exception for what a user can put right."""


class InputError(Exception):
    """Bad input: a value, file, column or model that the user named and that cannot be used.

    The message is one line that says what is wrong, where, and what to do. The command line
    prints that line on standard error and leaves with exit code 2.
    """
