"""Compiled programs that are kept: used again, never by halves, and no matter where they cannot."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genreg_jax import compiled
from genreg_jax.compiled import kept_programs

HITS, WRITES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
EXPECTED = np.sin(X).astype(np.float64) @ X.T


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path))
    return tmp_path


seen = []  # JAX's listeners are cleared all at once, other modules' too: this one stays
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))


@pytest.fixture
def events():
    seen.clear()
    return seen


def run():
    """Compiles a program and checks what it gives."""
    jax.clear_caches()
    with kept_programs() as folder:
        found = jax.jit(lambda x: jnp.sin(x) @ x.T)(X)
        there = set() if folder is None else {path.name for path in folder.glob("*-cache")}
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-5)
    return folder, there


def entries(home):
    return sorted(path for path in home.glob("programs/*/*") if path.is_file())


def test_a_program_is_compiled_once(home, events):
    folder, there = run()
    assert there and WRITES in events and HITS not in events
    assert {path.name.rpartition(".")[0] for path in entries(home)} == there
    assert not folder.exists()
    events.clear()
    _, again = run()
    assert HITS in events and WRITES not in events and again == there


def test_settings_of_jax_are_as_before(home):
    names = [name for name in dir(jax.config) if "cache" in name]
    before = {name: getattr(jax.config, name) for name in names}
    with kept_programs() as folder:
        assert jax.config.jax_compilation_cache_dir == str(folder)
    assert {name: getattr(jax.config, name) for name in names} == before


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "name"])
def test_a_damaged_entry_is_removed_and_compiled_again(home, events, damage):
    run()
    for path in entries(home):
        content = bytearray(path.read_bytes())
        if damage == "bit":
            content[len(content) // 2] ^= 1
        path.unlink()
        name = "rubbish" if damage == "name" else path.name
        path.with_name(name).write_bytes(
            {"cut": content[: len(content) // 2], "empty": b""}.get(damage, content)
        )
    events.clear()
    run()
    assert HITS not in events and WRITES in events
    assert all(path.name != "rubbish" for path in entries(home))
    events.clear()
    run()
    assert HITS in events


def test_what_a_full_disk_has_cut_off_is_not_kept_and_not_spoken_of(home):
    program = (
        "import resource, signal, jax\n"
        "from genreg_jax.compiled import kept_programs\n"
        "with kept_programs() as folder:\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "    print(jax.jit(lambda x: x * 3)(1.0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3.0\n", "")
    assert not entries(home)


def test_what_ends_in_an_error_is_kept_too(home, events):
    with pytest.raises(SystemExit), kept_programs():
        jax.jit(lambda x: x * 3)(X)
        raise SystemExit(1)
    assert entries(home)


def test_a_killed_process_leaves_nothing_that_is_used_and_is_cleared_away(home):
    program = (
        "import os, jax\n"
        "from genreg_jax.compiled import kept_programs\n"
        "with kept_programs() as folder:\n"
        "    jax.jit(lambda x: x * 3)(1.0)\n"
        "    (folder / 'half-cache').write_bytes(b'half')\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    assert not entries(home) and len(list(home.glob("programs/*/.own-*"))) == 1
    with kept_programs() as folder:  # whose own stays beside another's that lives
        assert list(home.glob("programs/*/.own-*")) == [folder]
        compiled._remove_abandoned(folder.parent)
        assert folder.exists()


def test_two_at_a_time_do_not_disturb_each_other(home):
    shared = compiled._shared()
    with compiled._own_folder(shared) as first, compiled._own_folder(shared) as second:
        assert first != second
        content = compiled.zlib.compress(b"program")
        (first / "a-cache").write_bytes(content)
        (second / "a-cache").write_bytes(content)
        (second / "b-cache").write_bytes(content[:-3])
    assert [path.name.rpartition(".")[0] for path in entries(home)] == ["a-cache"]


def test_the_oldest_go_first(home, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_BYTES", 250)
    shared = compiled._shared()
    for i in range(4):
        with compiled._own_folder(shared) as own:
            content = compiled.zlib.compress(os.urandom(80))
            (own / f"{i}-cache").write_bytes(content)
        for path in entries(home):  # each is an hour older than the next
            os.utime(path, (0, 3600 * int(path.name[0])))
    assert [path.name[0] for path in entries(home)] == ["2", "3"]


@pytest.mark.parametrize("how", ["empty", "jax's own", "a file in the way", "no locks"])
def test_it_is_off_where_it_is_turned_off_or_cannot_be(home, how, monkeypatch, tmp_path):
    if how == "empty":
        monkeypatch.setenv("GENREG_CACHE", "")
    elif how == "no locks":  # as on Windows
        monkeypatch.setitem(sys.modules, "fcntl", None)
    elif how == "a file in the way":
        (home / "programs").write_text("")
    else:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    try:
        assert run()[0] is None
        wanted = str(tmp_path / "jax") if how == "jax's own" else None
        assert jax.config.jax_compilation_cache_dir == wanted
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_without_a_home_nothing_is_kept(monkeypatch):
    for name in ("GENREG_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without an entry
    assert compiled.cache_home() is None
