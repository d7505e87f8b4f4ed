"""The one exception that a person is meant to read, and the gist of others."""


class UserError(ValueError):
    """Wrong input from a person: says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2; in a notebook it is an ordinary ValueError.
    """


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
