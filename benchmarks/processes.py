"""Commands of the library in forks of a process that has imported it: they start at once."""

import multiprocessing
import os
import runpy
import sys
import warnings

_CONTEXT = multiprocessing.get_context("forkserver")
# Nothing of these starts a thread or JAX's backend when it is imported.
_CONTEXT.set_forkserver_preload(
    ["genreg_jax.train", "genreg_jax.predict", "genreg_jax.flows.evaluate", "tensorboardX", "PIL"]
)


class Command:
    """`python -m MODULE ARGUMENT ...` as a process, with an interface like `subprocess.Popen`'s.

    Args:
      module: as `genreg_jax.main`.
      *arguments: of the command.
      cwd: its working directory.
      environment: what is added to its environment; not what is read when JAX is imported.

    Attributes:
      stdout: its output and errors together.
    """

    def __init__(self, module, *arguments, cwd, environment=None):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        options = (module, [str(a) for a in arguments], str(cwd), environment or {}, sender)
        self._process = _CONTEXT.Process(target=_run, args=options)
        self._process.start()
        sender.close()
        self.stdout = os.fdopen(os.dup(receiver.fileno()), encoding="utf-8", errors="replace")
        self.pid = self._process.pid

    @property
    def returncode(self):
        """Exit status, or minus the signal that ended it; None before."""
        return self._process.exitcode

    def poll(self):
        """The same."""
        return self._process.exitcode

    def send_signal(self, signum):
        """Sends it, unless the process has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, signum)

    def communicate(self):
        """Everything that it prints from now on, once it has ended, and None."""
        with self.stdout:
            text = self.stdout.read()
        self._process.join()
        return text, None


def _run(module, arguments, cwd, environment, sender):
    os.dup2(sender.fileno(), 1)
    os.dup2(sender.fileno(), 2)
    sender.close()
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, that the module is imported already
    runpy.run_module(module, run_name="__main__", alter_sys=True)
