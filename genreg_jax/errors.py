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


class ConfigError(UserError):
    """A setting is wrong. The message starts with its name.

    Attributes:
      key: the setting, such as `config.train.epochs`.

    Example:
      >>> from genreg_jax.config import from_config
      >>> try:
      ...     from_config({"train": {"epochs": 0}})
      ... except ConfigError as error:
      ...     print(error.key)
      config.train.epochs
    """

    def __init__(self, message: str, key: str = ""):
        super().__init__(message)
        self.key = key
