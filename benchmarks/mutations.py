"""What if the files of a workdir are not what they were? Counts over random mutations.

    python benchmarks/mutations.py --trials 2000        # half a second a trial on one core

A small run is made once. In each trial a copy of its workdir has one file changed: some bytes
turned, cut, doubled or put in, or, of a JSON file, a value replaced, renamed, removed or nested.
Then the copy is read as users would: `gr.load` and its predictions, the finished run's summary,
`report` and `compare`. Each must give what the whole workdir gives, or a paragraph (`UserError`),
within 60 seconds. In every twentieth trial the change is one that no checksum shows,
since it is made again: of the summary, or of what a checkpoint says of its run; then any result
will do. The exit status is 1 if anything else happened.
"""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import random
import shlex
import shutil
import signal
import sys
import tempfile

import numpy as np

import genreg_jax as gr
from genreg_jax.compare import compare
from genreg_jax.fingerprints import digest_of
from genreg_jax.logs import checksum, provenance, write_json
from genreg_jax.report import regenerate

CONFIG = {
    "data": {"name": "digits", "per_class": 8},
    "model": {"widths": [4, 8]},
    "synthetic": {"loss": "pcr", "strong": "none", "batch_size": 8},
    "flow": {"levels": 1, "steps": 1, "width": 4, "updates": 2, "eval_every": 2},
    "train": {"epochs": 2, "steps_per_epoch": 2, "batch_size": 16, "progress": False},
}
SECONDS = 60
ODD = [
    None, True, 0, -1, 2**31, 2**63, 10**30, 1e300, "", "x", "../../etc/passwd", "\ud800",
    "é" * 300, [], [[]], {}, {"a": 1}, [1, "x"], "NaN", "<script>",
]  # fmt: skip


class _Hang(Exception):
    pass


def alarm(*_):
    raise _Hang


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*path, key))


def mutated_json(text, rng):
    """A JSON text with something in it replaced, removed, renamed or nested."""
    value = json.loads(text)
    path = rng.choice([p for p in places(value) if p] or [()])
    if not path:
        return json.dumps(rng.choice(ODD))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    how = rng.choice(["replace", "replace", "replace", "remove", "rename", "nest", "deep"])
    if how == "replace":
        parent[path[-1]] = rng.choice(ODD)
    elif how == "remove":
        del parent[path[-1]]
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice(["", "x", "step", "__class__"])] = parent.pop(path[-1])
    elif how == "deep":
        depth = rng.choice([40, 2000, 200_000])
        return "[" * depth + "]" * depth
    else:
        parent[path[-1]] = [parent[path[-1]]]
    return json.dumps(value)


def mutated_bytes(content, rng):
    """Bytes with some of them turned, cut, doubled or put in."""
    content = bytearray(content)
    place = rng.randrange(len(content) + 1)
    how = rng.choice(["turn", "cut", "double", "insert", "empty"])
    if how == "turn" and content:
        for _ in range(rng.choice([1, 1, 8])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[place:]
    elif how == "double":
        content[place:place] = content[place : place + rng.randrange(1, 200)]
    elif how == "insert":
        content[place:place] = rng.choice([b"\0", b"\n", b"9" * 50, b'{"step": 1e999}\n', b"\xff"])
    else:
        content.clear()
    return bytes(content)


def mutate(workdir, rng):
    """Changes one file; returns which."""
    files = [
        p
        for p in sorted(workdir.rglob("*"))
        if p.is_file()
        and p.suffix not in (".png", ".html", ".csv")
        and "tensorboard" not in p.parts
    ]
    text = [p for p in files if p.parent == workdir]
    path = rng.choice(text if rng.random() < 0.7 else files)
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        path.write_text(mutated_json(content.decode(), rng), encoding="utf-8", errors="replace")
    else:
        path.write_bytes(mutated_bytes(content, rng))
    return path.name if path.parent == workdir else path.relative_to(workdir).parts[0]


def shown(page):
    """The results at the head of a report."""
    text = page.read_text(encoding="utf-8").partition("</header>")[0]
    return text.partition('<dl class="cards">')[2].partition("wall time")[0]


def forge(workdir, rng):
    """Changes a summary or a checkpoint's record, and makes its checksum again; returns which."""
    if rng.random() < 0.3:
        path, name = workdir / "summary.json", "checksum"
        whole = json.loads(path.read_text())
        forged = _forged({k: v for k, v in whole.items() if k != name}, rng)
        path.write_text(json.dumps({**forged, name: checksum(forged)}), errors="replace")
    else:
        folder = workdir / rng.choice(["checkpoints", "checkpoints", "flow"])
        for path in folder.glob("*/record/metadata"):
            record = json.loads(path.read_text())
            forged = {"extra": _forged(record["extra"], rng), "leaves": record["leaves"]}
            path.write_text(json.dumps({**forged, "digest": digest_of(forged)}), errors="replace")
        (workdir / "summary.json").unlink()
    return "forged"


def _forged(value, rng):
    """A JSON object with something in it changed that is one still."""
    while True:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(mutated_json(json.dumps(value), rng))
            if isinstance(found, dict) and len(json.dumps(found)) < 10**5:
                return found


def readings(workdir, images):
    """Name to what a reader gives."""
    return {
        "load": lambda: gr.load(workdir).predict(images).probabilities.tobytes(),
        "finished": lambda: gr.train_and_evaluate(CONFIG, workdir),
        "report": lambda: shown(regenerate(workdir)),
        "compare": lambda: [{**line, "run": ""} for line in compare([workdir])],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, alarm)
    rng, counts, failures = random.Random(args.seed), collections.Counter(), []
    images = np.asarray(gr.data.load("digits").test.images[:20])
    with tempfile.TemporaryDirectory() as folder:
        base, copy = pathlib.Path(folder, "whole"), pathlib.Path(folder, "copy")
        gr.train_and_evaluate(CONFIG, base)
        expected = {name: read() for name, read in readings(base, images).items()}
        for trial in range(args.trials):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(base, copy)
            where = forge(copy, rng) if trial % 20 == 19 else mutate(copy, rng)
            for name, read in readings(copy, images).items():
                signal.alarm(SECONDS)
                try:
                    with contextlib.redirect_stderr(io.StringIO()):
                        found = read()
                    # An earlier checkpoint is said, and is a right result of its own.
                    right = found == expected[name] or where in ("checkpoints", "forged")
                    outcome = "the right result" if right else "ANOTHER RESULT"
                except gr.UserError:
                    outcome = "a paragraph"
                except _Hang:
                    outcome = "NO END"
                except Exception as error:
                    outcome = f"{type(error).__name__}: {str(error).splitlines()[:1]}"[:200]
                finally:
                    signal.alarm(0)
                counts[outcome if outcome.islower() else "something else"] += 1
                if not outcome.islower():
                    failures.append(f"trial {trial}, {where}, {name}: {outcome}")
                    print(failures[-1], flush=True)
    print(f"{args.trials} mutations: " + ", ".join(f"{n} {k}" for k, n in counts.items()))
    if args.output:
        command = shlex.join(["python", "benchmarks/mutations.py", *sys.argv[1:]])
        rows = {
            "command": command,
            "trials": args.trials,
            "seed": args.seed,
            "counts": counts,
            "failures": failures,
        }
        write_json(args.output, {**rows, **provenance()})
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
