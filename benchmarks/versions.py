"""Is a run that goes on under another version of JAX refused or said, and never mixed?

    python benchmarks/versions.py OTHER_PYTHON          # some two minutes on one core

A small run on digits is begun with this interpreter and stopped with SIGTERM after its first
checkpoints; the same command with the interpreter of another environment must refuse it, name what
differs and change nothing. With `config.train.environment=any` it must go on, say so, and have both
environments in its summary. Then the same the other way round. The exit status is 1 if anything
else happened.
"""

import argparse
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from genreg_jax.logs import provenance, write_json

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = [
    *("-m", "genreg_jax.main", "--config=base_digits:runlocal", "--config.data.per_class=20"),
    *("--config.train.epochs=40", "--config.train.steps_per_epoch=50"),
    *("--config.train.batch_size=16", "--config.model.widths=[8,16]"),
    "--config.train.progress=False",
]


def start(python, workdir, *options):
    return subprocess.Popen(
        [python, *COMMAND, f"--workdir={workdir}", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process):
    text, _ = process.communicate()
    return process.returncode, " ".join(text.split())


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def direction(first, second, folder):
    """What happened to a run that was begun with one interpreter and gone on with the other."""
    process = start(first, folder / "run")
    while process.poll() is None and not list((folder / "run").glob("checkpoints/[0-9]*")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    stopped = said(process)
    before = contents(folder / "run")
    refused = said(start(second, folder / "run"))
    unchanged = contents(folder / "run") == before
    went_on = said(start(second, folder / "run", "--config.train.environment=any"))
    summary = json.loads((folder / "run" / "summary.json").read_text())
    processes = [(p["step"], p["versions"]["jax"]) for p in summary["processes"]]
    good = (
        stopped[0] in (-signal.SIGTERM, 128 + signal.SIGTERM)
        and refused[0] == 1
        and "was begun in another environment" in refused[1]
        and unchanged
        and went_on[0] == 0
        and "goes on in another environment" in went_on[1]
        and len({version for _, version in processes}) == 2
    )
    hidden = str(folder)
    return {
        "good": good,
        "stopped": stopped[1].replace(hidden, "FOLDER"),
        "refused": refused[1].replace(hidden, "FOLDER"),
        "nothing changed": unchanged,
        "with environment=any": went_on[1].replace(hidden, "FOLDER"),
        "processes, as (update, jax)": processes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", help="the python of an environment with another version of JAX")
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    for first, second in ((sys.executable, args.other), (args.other, sys.executable)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(direction(first, second, pathlib.Path(folder)))
        print(json.dumps(rows[-1], indent=2), flush=True)
    if args.output:
        command = "python benchmarks/versions.py OTHER_PYTHON"
        write_json(args.output, {"command": command, "rows": rows, **provenance()})
    sys.exit(not all(row["good"] for row in rows))


if __name__ == "__main__":
    main()
