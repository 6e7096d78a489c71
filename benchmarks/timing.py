"""Times of programs beside each other: compiled first, in interleaved rounds, as ratios."""

import functools
import statistics
import time

import jax


def inner(equation):
    """The jaxprs within an equation of one: bodies of loops, branches, calls."""
    parts = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(equation.params.values()))]
    return [part for part in parts if hasattr(part, "eqns")]


def equations(jaxpr):
    """Of a jaxpr: how many there are, those of loops and calls once."""
    return len(jaxpr.eqns) + sum(equations(part) for e in jaxpr.eqns for part in inner(e))


def compile_all(programs):
    """Name to `(compiled program, arguments)` from name to `(function, arguments)`."""
    return {k: (jax.jit(f).lower(*args).compile(), args) for k, (f, args) in programs.items()}


def flops(compiled):
    """Name to what XLA counts."""
    return {k: program.cost_analysis()["flops"] for k, (program, _) in compiled.items()}


def rounds(calls, repeats):
    """Name to seconds of each of so many rounds, in which each call, `() -> result`, is made once.

    So a slow moment of the machine hits all alike. The first round, which warms up, is not counted.
    """
    seconds = {k: [] for k in calls}
    for repeat in range(repeats + 1):
        for k, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:
                seconds[k].append(time.perf_counter() - start)
    return seconds


def interleaved(compiled, repeats):
    """`rounds` of compiled programs, from `compile_all`."""
    return rounds({k: functools.partial(f, *args) for k, (f, args) in compiled.items()}, repeats)


def ratio(seconds, name, other):
    """How many times as long one takes as another, the median over the rounds."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[other]))


def form_programs(forms, x, kernel, change=lambda gradient: gradient):
    """Name to (function, arguments): each form of `(x, kernel)`, and its gradient, changed."""
    made = {}
    for name, form in forms.items():
        loss = lambda x, k, form=form: (form(x, k) ** 2).sum()
        made[f"{name} forward"] = jax.jit(form), (x, kernel)
        made[f"{name} gradient"] = jax.jit(change(jax.grad(loss, (0, 1)))), (x, kernel)
    return made


def form_rows(cases, programs, repeats):
    """Prints and returns a row a case: how many times the second form's time the first one takes.

    Args:
      cases: dicts of what is varied.
      programs: `(**case) -> form_programs` of two forms.
      repeats: rounds.
    """
    rows = []
    for case in cases:
        made = programs(**case)
        first, other = dict.fromkeys(name.rpartition(" ")[0] for name in made)
        seconds = interleaved(compile_all(made), repeats)
        kinds = ("forward", "gradient")
        ratios = {kind: ratio(seconds, f"{first} {kind}", f"{other} {kind}") for kind in kinds}
        if not rows:
            print(*(f"{name:>9}" for name in (*case, *ratios)))
        print(
            *(f"{v:9}" for v in case.values()), *(f"{v:9.2f}" for v in ratios.values()), flush=True
        )
        rows.append({**case, **ratios, "repeats": repeats})
    return rows


def cost_rows(compiled, repeats):
    """Time, FLOPs and temporary memory of each program, a row each, in multiples of the first."""
    seconds, counts = interleaved(compiled, repeats), flops(compiled)
    memory = {k: p.memory_analysis().temp_size_in_bytes for k, (p, _) in compiled.items()}
    first = next(iter(compiled))
    return [
        {
            "row": k,
            "time": ratio(seconds, k, first),
            "flops": counts[k] / counts[first],
            "memory": memory[k] / memory[first],
            "repeats": repeats,
        }
        for k in compiled
    ]


def step_rows(programs, parts, repeats, floor_of):
    """What training steps cost, a row each, in multiples of the program `plain`.

    Args:
      programs: name to `(function, arguments)` of the steps, `plain` among them.
      parts: the same of what their floors consist of, for `floor_of`.
      repeats: rounds.
      floor_of: `(name, flops of all programs and parts) -> FLOPs` of a step's floor.
    """
    compiled = compile_all(programs)
    counts = flops(compiled | compile_all(parts))
    seconds = interleaved(compiled, repeats)
    return [
        {
            "row": k,
            "milliseconds": 1e3 * statistics.median(seconds[k]),
            "time": ratio(seconds, k, "plain"),
            "flops": counts[k] / counts["plain"],
            "floor": floor_of(k, counts) / counts["plain"],
            "over_floor": counts[k] / floor_of(k, counts) - 1,
            "repeats": repeats,
        }
        for k in programs
    ]


HEAD = f"{'setting':14} {'row':30} {'ms':>8} {'time':>6} {'FLOPs':>7} {'floor':>7}  over"


def line(setting, row):
    """A row of `step_rows` as a line below `HEAD`."""
    return (
        f"{setting:14} {row['row']:30} {row['milliseconds']:8.1f} {row['time']:6.2f} "
        f"{row['flops']:7.2f} {row['floor']:7.2f} {100 * row['over_floor']:+5.1f} %"
    )
