"""The one exception that is the user's to mend."""


class UserError(Exception):
    """Bad input: names the value, the place and the remedy in one line. Ends the program with exit code 2."""
