"""The one exception a user is meant to read: what is wrong, where, and what to do about it."""


class CEMGError(ValueError):
    """Bad input, settings or artefacts. The message is one line that names the place and the remedy.

    Commands print it without a traceback and exit with status 2.
    """
