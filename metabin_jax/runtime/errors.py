"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one sentence that names the file, field or value, says what is wrong and what to do.

    The command line prints it and exits with status 2. Any other ValueError is a fault of ours and keeps its traceback.
    """
