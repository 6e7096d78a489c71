"""Command lines of all commands, and manners of calling them, as hypothesis draws them."""

import signal

from flax.traverse_util import flatten_dict
from hypothesis import strategies as st

from genreg_jax.config import default_config

SETTINGS = sorted(
    key for key in flatten_dict(default_config().to_dict(), sep=".") if key != "data.download"
)

VALUES = st.one_of(
    st.sampled_from("-1 0 1 2 3 7 100000 1000000000 2147483648 99999999999999999999 1e20".split()),
    st.sampled_from("-1.0 -0.0 0.5 1.0 1e-30 1e30 nan inf -inf".split()),
    st.sampled_from(["", "none", "None", "True", "false", "mgr", "l2", "flip+crop(9)", "crop(99)"]),
    st.sampled_from(["[1,2]", "(4,)", "()", "{}", "'", '"', "../x", "/dev/null", "é", "a" * 300]),
    st.sampled_from(["cutout(-1)", "adversarial", "pgd", "attraction", "pcr", "adam", "resnet18"]),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
)
OVERRIDES = st.builds(
    lambda key, value: f"--config.{key}={value}", st.sampled_from(SETTINGS), VALUES
)
ODD = st.sampled_from(
    [
        "--config.data",
        "--config.nope=1",
        "--config.train.epoch=3",
        "--config.train=3",
        "--nope",
        "-x",
    ]
    + ["extra", "--config.seed", "--config.model.widths=[4,x]", "--config.=1", "--"]
    + ["--config.data.name=cifar", "--config.data.name=imagenet2012", "--config.data.dir=/nowhere"]
)
CONFIGS = st.sampled_from(
    ["configs/base_digits.py:runlocal"] * 9
    + ["configs/phantom_digits.py:runlocal", "configs/pgd_digits.py:runlocal"]
    + ["configs/base_digits.py:nope", "configs/nope.py", "configs", "README.md", ""]
    + ["{folder}/raises.py", "{folder}/empty.py", "{folder}/number.py", "{folder}/syntax.py"]
)
WORKDIRS = st.sampled_from(
    ["{folder}/new"] * 9
    + ["{folder}/file", "{folder}/other", "{folder}/used", "/proc/new", "a" * 300]
)
DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 99),
        st.sampled_from(["remove", "empty", "cut", "turn", "folder"]),
        st.integers(0, 10**6),
    ),
    max_size=3,
)
LINES = st.one_of(
    st.tuples(
        CONFIGS, WORKDIRS, st.lists(st.one_of(OVERRIDES, OVERRIDES, ODD), max_size=3), st.none()
    ),
    st.tuples(
        st.just("configs/base_cifar10.py:runlocal"), st.just("{folder}/new"), st.just([]), DAMAGE
    ),
)
PATHS = st.sampled_from(
    ["{folder}/run", "{folder}/run/samples", "{folder}/used", "{folder}/file", "{folder}/other"]
    + ["/nowhere", "", "~nosuchuser", "a" * 300, "/dev/null", "/dev/zero", "é\udcff"]
)
OTHERS = st.one_of(
    st.tuples(
        st.just("predict"), st.tuples(PATHS, PATHS).map("--workdir={0[0]} --input={0[1]}".format)
    ),
    st.tuples(st.just("flows.evaluate"), PATHS.map("--workdir={}".format)),
    st.tuples(st.just("report"), PATHS.map("--workdir={}".format)),
    st.tuples(st.just("compare"), st.lists(PATHS, max_size=3).map(" ".join)),
    st.tuples(st.just("export"), PATHS.map("--workdir={} --output={{folder}}/new".format)),
    st.tuples(
        st.just("augment"),
        st.tuples(PATHS, PATHS).map("--flow={0[0]} --input={0[1]} --output={{folder}}/new".format),
    ),
    st.tuples(
        st.just("data.prepare"),
        PATHS.map("--dataset=cifar10 --data_dir={{folder}}/new --archive={}".format),
    ),
    st.tuples(
        st.sampled_from(
            "predict flows.evaluate report compare export augment data.prepare".split()
        ),
        st.sampled_from(["", "--nope", "-x", "--workdir", "--input=", "--seed=1e20", "extra"]),
    ),
)
STREAMS = st.sampled_from(
    ["plain"] * 6
    + ["stdout closed", "stderr closed", "stdout full", "stderr full", "stdout left"]
    + ["ascii", "latin-1", "utf-16"]
)
ENVIRONMENTS = st.sampled_from(
    [{}] * 8
    + [{"JAX_PLATFORMS": name} for name in ("odd", "cuda", "odd,cpu", "")]
    + [{"JAX_DISABLE_JIT": "1"}, {"JAX_ENABLE_X64": "1"}, {"JAX_DEFAULT_PRNG_IMPL": "rbg"}]
    + [{"HOME": None}, {"TMPDIR": "/nowhere"}, {"COLUMNS": "1"}, {"TERM": "dumb"}, {"PATH": None}]
)
ODD_AT_IMPORT = [
    *({"LC_ALL": name} for name in ("C", "POSIX", "C.UTF-8", "xx_XX")),
    *({"PYTHONIOENCODING": name} for name in ("ascii", "latin-1")),
    *(
        {"JAX_ENABLE_X64": "odd"},
        {"JAX_DEFAULT_PRNG_IMPL": "odd"},
        {"PYTHONUTF8": "0", "LC_ALL": "C"},
    ),
]
SIGNALS = st.one_of(
    st.none(),
    st.none(),
    st.tuples(st.sampled_from([signal.SIGINT, signal.SIGTERM]), st.floats(0, 1)),
)
MANNERS = st.tuples(STREAMS, ENVIRONMENTS, SIGNALS)
