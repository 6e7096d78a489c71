"""The command line: `python -m genreg_jax.main --config=configs/mgr_digits.py --workdir=DIR`.

`--config=mgr_digits` is the shipped config of that name, from any folder and from a wheel.
"""

import ast
import difflib
import importlib.util
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from genreg_jax.door import answer_interrupts, leave, say, through
from genreg_jax.errors import ConfigError, UserError
from genreg_jax.interrupt import Interrupted

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with options behind a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/<name of the config file> if not given."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several processes: host:port of the first, or `auto` on a known cluster."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: which one, from 0.")

_FLAGS = ("config", "workdir", "coordinator", "num_processes", "process_id")
_DATA = ("cifar10", "digits", "fashion_mnist", "folder", "photographs")  # of the shipped configs
_NOT_READ = "config.train.evaluate_test is False"


def _stop(message: object, *, status: int = 1) -> NoReturn:
    say(message)
    sys.exit(status)


def _configs() -> Path:
    """The folder of the shipped configs: in the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def _shipped_configs(wanted: str = "") -> str:
    names = sorted(path.stem for path in _configs().glob("[!_]*_*.py"))
    close = difflib.get_close_matches(Path(wanted).stem, names, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Shipped: {', '.join(names)}."


def _help() -> str:
    """What `--help` prints: how to call it, and what is shipped."""
    methods: dict[str, list[str]] = {}
    about: dict[str, str] = {}
    for path in sorted(_configs().glob("[!_]*_*.py")):
        data = next(name for name in _DATA if path.stem.endswith(f"_{name}"))
        method = path.stem.removesuffix(f"_{data}")
        methods.setdefault(method, []).append(data)
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        line = text.partition("\n")[0]
        about[method] = min(about.get(method, line), line, key=len)
    lines = [
        "usage: python -m genreg_jax.main --config=NAME[:OPTION] [--workdir=DIR]",
        "                                 [--config.key=value ...]",
        "",
        "Trains the classifier, or the flow alone, of a config, and continues where it stopped.",
        "",
        *(f"  --{name}: {flags.FLAGS[name].help}" for name in _FLAGS),
        "",
        "NAME is a file or one of these; the option `runlocal` makes it small enough to look at in",
        "minutes, and the head of its file says which others there are.",
        "",
    ]
    for method, names in methods.items():
        lines += [f"  {method}_{{{','.join(names)}}}", f"      {about[method]}"]
    return "\n".join(lines)


def _as_file(config: str) -> str:
    """A config's file from a bare name, such as `mgr_digits` or `mgr_digits.py`, with its options.

    A file of that name in the working directory comes first; another form is left as it is.
    """
    name, colon, options = config.partition(":")
    folder = _configs()
    path = folder / f"{Path(name).name.removesuffix('.py')}.py"
    shipped = Path(name).name == name and not Path(name).is_file() and path.is_file()
    # The top-level name that configs import the shipped ones by; in a wheel it is not there. A
    # package of that name in the working directory is for configs of one's own alone.
    there = [os.path.realpath(p) for p in getattr(sys.modules.get("configs"), "__path__", ())]
    own = there or Path("configs", "__init__.py").is_file()
    if (shipped and there != [str(folder)]) or not own:
        for module in [m for m in sys.modules if m.partition(".")[0] == "configs"]:
            del sys.modules[module]
        spec = importlib.util.spec_from_file_location(
            "configs", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
    return f"{path}{colon}{options}" if shipped else config


def _reason(error: Exception, path: str) -> str:
    """What an error of the config's loading says, and in which line of the file it came."""
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    if text[:1] == text[-1:] and text[:1] in ("'", '"'):
        text = text[1:-1]
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = " ".join(text.replace("\\'", "'").replace("\\n", " ").split())
    return f"{text.rstrip('.')} (line {line})." if line else text


_KINDS = {
    bool: ("True or False", lambda text: text.lower() in ("true", "t", "1", "false", "f", "0")),
    int: ("a whole number", lambda text: int(text) is not None),
    float: ("a number", lambda text: float(text) is not None),
}


def _check_overrides(argv: list[str]) -> None:
    """Refuses `--config.group.name=value` of a setting that is not there, or of another type."""
    from genreg_jax.config import default_config

    for i, arg in enumerate(argv):
        name, equals, value = arg.lstrip("-").partition("=")
        if not (arg.startswith("-") and name.startswith("config.")):
            continue
        group, path = default_config().to_dict(), "config"
        for key in name.split(".")[1:]:
            if not isinstance(group, dict) or key not in group:
                there = sorted(group) if isinstance(group, dict) else []
                close = difflib.get_close_matches(key, there, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                has = f"it has {', '.join(there)}" if there else "it is no group"
                _stop(f"{path} has no setting {key!r}; {has}.{hint} It was given as {arg}.")
            group, path = group[key], f"{path}.{key}"
        if isinstance(group, dict):
            _stop(
                f"{path} is a group of settings, {', '.join(sorted(group))}; set one of them, as "
                f"in --{path}.{min(group)}=... It was given as {arg}."
            )
        if not equals and type(group) is bool:
            continue  # --config.group.name alone is True
        kind, right = _KINDS.get(type(group), ("", lambda text: True))
        value = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
        try:
            good = right(value)
        except ValueError:
            good = False
        if not good:
            _stop(f"{path} must be {kind}, got {value!r}. It was given as {arg}.")


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; what a user can get wrong in them ends in one paragraph."""
    if any(arg in ("-h", "-help", "--help", "--helpshort") for arg in argv[1:]):
        print(_help())
        sys.exit(0)
    path, argv = "", list(argv)
    for i, arg in enumerate(argv[1:], start=1):
        name, equals, value = arg.lstrip("-").partition("=")
        if name == "config":
            given = _as_file(value if equals else (argv[i + 1] if i + 1 < len(argv) else ""))
            path = given.partition(":")[0]
            if not Path(path).is_file():
                _stop(f"There is no config {path!r}. {_shipped_configs(path)}")
            if equals:
                argv[i] = f"--config={given}"
            else:
                argv[i + 1] = given
    _check_overrides(argv[1:])
    try:
        rest = flags.FLAGS(argv)
        config = _CONFIG.value
    except Exception as error:  # a config is a program of the user's and can raise anything
        _stop(f"The command line or the config {path} is wrong: {_reason(error, path)}")
    if len(rest) > 1:
        _stop(f"Unknown argument {rest[1]!r}; overrides are written --config.key=value.")
    if config is None and path:
        _stop(f"get_config() of {path} returned None; it must return a config.")
    if config is None:
        _stop(f"Which config? Give --config=<name>. {_shipped_configs()}")
    return rest


def _where(key: str, config_file: str) -> str:
    """Where a setting got its wrong value: on the command line, by the config file, nowhere."""
    if any(arg.lstrip("-").partition("=")[0] == key for arg in sys.argv[1:]):
        return f"It was given as --{key}."
    from genreg_jax.config import default_config

    value, default = _CONFIG.value, default_config()
    for name in key.split(".")[1:]:
        value, default = value.get(name), default.get(name)
    return f"It is set by {config_file}." if value != default else "That is its default."


def _given(flag: Any, variable: str, default: Any) -> Any:
    """A flag's value or, where it is not given, that of an environment variable."""
    value = os.environ.get(variable, default) if flag.value is None else flag.value
    try:
        return type(default)(value)
    except ValueError:
        raise UserError(f"The environment has {variable}={value!r}, not a whole number.") from None


def main(argv: list[str]) -> None:
    """Runs the config given by the flags and prints the test result as the last line."""
    del argv
    # What orbax logs of saving and its failures is not for people; a failure is also raised.
    logging.set_verbosity(logging.FATAL)
    # A file that could not be written fails once more when it is closed.
    hook: Any = sys.unraisablehook
    sys.unraisablehook = lambda raised: isinstance(raised.exc_value, OSError) or hook(raised)
    # Imported late, so that a mistyped flag is answered at once.
    import jax

    from genreg_jax.devices import connect, is_first
    from genreg_jax.train import train_and_evaluate

    flag: Any = flags.FLAGS["config"]
    name = Path(flag.config_filename.partition(":")[0]).stem
    workdir = Path(_WORKDIR.value or Path("runs") / name)
    command = shlex.join(["python", "-m", "genreg_jax.main", *sys.argv[1:]])
    try:
        workdir = workdir.expanduser()
    except RuntimeError as error:
        _stop(f"--workdir={_WORKDIR.value}: {error} Give a folder that exists.")
    try:
        coordinator = _given(_COORDINATOR, "JAX_COORDINATOR_ADDRESS", "")
        if coordinator:
            connect(
                "" if coordinator == "auto" else coordinator,
                _given(_NUM_PROCESSES, "JAX_NUM_PROCESSES", 1),
                _given(_PROCESS_ID, "JAX_PROCESS_ID", 0),
            )
        summary = train_and_evaluate(_CONFIG.value, workdir, command=command)
    except ConfigError as error:
        _stop(f"{error} {_where(error.key, flag.config_filename)}")
    except UserError as error:
        _stop(error)
    except Interrupted as stopped:
        _stop(stopped, status=128 + stopped.signum)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        # The words of XLA: for what is dispatched later they come inside an internal error.
        words = ("RESOURCE_EXHAUSTED", "Out of memory")
        memory = isinstance(error, MemoryError) or any(word in str(error) for word in words)
        if not memory:
            raise
        _stop(
            f"Out of memory ({str(error).strip()[:200]}). Lower config.train.batch_size, "
            "config.train.eval_batch_size or the width of the model or the flow. What was saved "
            f"is whole: {workdir}."
        )
    except KeyboardInterrupt:
        message = f"Interrupted. The same command continues from the last checkpoint in {workdir}."
        _stop(message, status=130)
    if not is_first():
        return
    print(f"report: {workdir / 'report.html'}")
    if "test_bits_per_dim" in summary:
        bits = summary["test_bits_per_dim"]
        print(
            "test bits/dim: " + (f"{bits:.4f}" if bits is not None else f"not read ({_NOT_READ})")
        )
    elif summary["test_accuracy"] is None:
        print(f"test accuracy: not read ({_NOT_READ})")
    else:
        print(f"test accuracy: {100 * summary['test_accuracy']:.2f} %")


def console() -> None:
    """Entry point of the installed command `genreg-jax`."""
    answer_interrupts()
    leave(through(lambda: app.run(main, flags_parser=_parse_flags), compiles=True))


if __name__ == "__main__":
    console()
