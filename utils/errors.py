"""The one exception that a person is meant to read."""


class UserError(ValueError):
    """Wrong input from a person: says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2; in a notebook it is an ordinary ValueError.
    """
