"""The one exception that the command line turns into a paragraph instead of a traceback."""


class UserError(ValueError):
    """Something the user gave is wrong, and the message says what to do about it.

    The message is one paragraph: what was given, what is allowed, and the way out. The command
    line prints it and exits with a non-zero status; from a notebook it is an ordinary `ValueError`.

    Example:
      >>> import genreg_jax as gr
      >>> try:
      ...     gr.data.load("digitz")
      ... except gr.UserError as error:
      ...     print("did you mean" in str(error).lower())
      True
    """
