"""The doctor names what is wrong, and only that."""

import subprocess
import sys

import pytest

from genreg_jax import doctor

GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.2", "tfp-nightly": "0.26"}


def levels(findings):
    return [finding.level for finding in findings]


def test_versions_that_belong_together():
    assert levels(doctor.check_versions(GOOD, (3, 13))) == ["ok"]


@pytest.mark.parametrize(
    "change, python, says",
    [
        ({"jaxlib": "0.10.1"}, (3, 11), "jaxlib==0.10.2"),
        ({"jax-cuda12-plugin": "0.7.2"}, (3, 11), "jax[cuda12]==0.10.2"),
        ({"jax-cuda13-pjrt": "0.7.2"}, (3, 11), "jax[cuda13]==0.10.2"),
        ({}, (3, 10), "Python 3.11"),
    ],
)
def test_versions_that_do_not(change, python, says):
    found = list(doctor.check_versions({**GOOD, **change}, python))
    assert levels(found) == ["ok", "wrong"] and says in found[1].text


def test_stable_tensorflow_probability():
    versions = {"jax": "0.10.2", "tensorflow-probability": "0.25.0"}
    assert levels(doctor.check_versions(versions, (3, 11))) == ["ok", "wrong"]
    assert levels(doctor.check_versions({**versions, "tfp-nightly": "1"}, (3, 11))) == ["ok"]


def test_distrax_that_cannot_be_imported():
    def broken(name):
        raise AttributeError(
            "module 'jax.interpreters.xla' has no attribute 'pytype_aval_mappings'"
        )

    (finding,) = doctor.check_distrax(broken)
    assert finding.level == "note" and "pytype_aval_mappings" in finding.text


def test_data(tmp_path):
    (finding,) = doctor.check_data(str(tmp_path))
    assert finding.level == "note" and str(tmp_path) in finding.text
    for name in ("mnist/3.0.1", "downloads/extracted"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dataset_info.json").write_text("{}")
    (finding,) = doctor.check_data(str(tmp_path))
    assert finding.level == "ok" and finding.text.endswith(": mnist")
    for name in ("jpg", "imagelabels.mat", "setid.mat"):  # nothing in them is looked at
        (tmp_path / "flowers/flowers-102" / name).mkdir(parents=True)
    (finding,) = doctor.check_data(str(tmp_path))
    assert finding.text.endswith(": flowers, mnist")


def test_an_accelerator_that_is_not_used(monkeypatch):
    monkeypatch.setattr(doctor.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    found = list(doctor.check_devices())
    assert levels(found) == ["ok", "wrong"] and "[cuda12]" in found[1].text


def test_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "genreg_jax.doctor", f"--data_dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-test" in done.stdout and done.stdout.endswith("Nothing is wrong.\n")
