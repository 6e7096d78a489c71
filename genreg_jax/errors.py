"""The one exception that the command line turns into a paragraph instead of a traceback."""

import errno
import os
from pathlib import Path

OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES}


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


class BusyError(UserError):
    """Another program writes to the workdir, or has just finished its run."""


def way_out(error: OSError, workdir: Path) -> str:
    """What to do about a file that the system refuses: of the workdir, or somebody else's.

    Empty for what is no file's error, such as a callback's lost connection.
    """
    name = error.filename
    if name is None and error.errno not in OF_DISKS:
        return ""
    if isinstance(name, str | bytes):
        path, homes = Path(os.fsdecode(name)), (workdir.absolute(), workdir.resolve())
        if not any(path.absolute().is_relative_to(home) for home in homes):
            return "see that this file, which is not of the run, is there and can be used"
    return "make room, or make the folder writable"
