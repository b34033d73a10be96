"""`./run` with a Python that only pretends to make environments and to install, so that the tests take no time."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# Notes what it is asked to do in calls.log next to the project, and lets a file `offline` there make pip fail.
FAKE_PYTHON = """#!/bin/sh
project='{project}'
case "$1 ${{2-}}" in
'-c '*) exit {version_check} ;;
'-V '*) echo "Python {version}" ;;
'- '*) exec '{real}' "$@" ;;
'-m venv') echo venv >>"$project/calls.log"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
'-m pip')
    echo "$*"
    echo "$*" >>"$project/calls.log"
    sleep {install_seconds}
    [ ! -e "$project/offline" ] || exit 1
    printf '#!/bin/sh\\necho lm2 "$@"\\n' >"$(dirname "$0")/lm2"
    chmod +x "$(dirname "$0")/lm2"
    ;;
*) echo python "$@" ;;
esac
"""


class Checkout:
    """A copy of `run` and `pyproject.toml` in a folder of its own."""

    def __init__(self, folder: Path, version: str = "3.12.1", install_seconds: float = 0) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("run", "pyproject.toml"):
            shutil.copy(PROJECT / name, folder)
        self.python = folder / "fake-python"
        self.python.write_text(
            FAKE_PYTHON.format(
                project=folder,
                real=sys.executable,
                version=version,
                version_check=int(version < "3.10"),
                install_seconds=install_seconds,
            )
        )
        self.python.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(self.folder / "run"), *arguments],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(self.python), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **environment)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls.log"
        return log.read_text().splitlines() if log.exists() else []

    def install_call(self, extras: str = "[rag,viz]") -> str:
        return f"-m pip install --no-input --editable {self.folder}{extras}"


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path / "a project")


def test_without_arguments_it_explains_itself_and_installs_nothing(checkout):
    done = checkout.run()
    assert done.returncode == 0
    assert "./run test" in done.stdout
    assert not (checkout.folder / ".venv").exists()


def test_refuses_an_old_python(tmp_path):
    checkout = Checkout(tmp_path / "project", version="3.1.4")
    done = checkout.run("params")
    assert done.returncode == 1
    assert "is Python 3.1.4, but Python 3.10 or later is needed" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_names_a_missing_python(checkout):
    done = checkout.run("params", PYTHON="no-such-python")
    assert done.returncode == 1
    assert "there is no 'no-such-python'" in done.stderr


def test_installs_once_and_passes_arguments_on(checkout):
    for _ in range(2):
        done = checkout.run("params", "--paper", "two words")
        assert (done.returncode, done.stdout) == (0, "lm2 params --paper two words\n"), done.stderr
    assert checkout.calls == ["venv", checkout.install_call()]


def test_says_what_it_does(checkout):
    done = checkout.run("params")
    assert "run: making .venv with Python 3.12.1" in done.stderr
    assert "run: installing the project (rag,viz)" in done.stderr
    assert checkout.run("params").stderr == ""


def test_installs_again_when_pyproject_changes(checkout):
    checkout.run("params")
    with (checkout.folder / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# changed\n")
    assert checkout.run("params").returncode == 0
    assert checkout.calls == ["venv", checkout.install_call(), checkout.install_call()]


def test_development_tools_come_with_the_first_test_run_and_stay(checkout):
    checkout.run("params")
    done = checkout.run("test", "-k", "one or two")
    assert done.stdout.startswith("python -m pytest ")
    assert done.stdout.endswith(" -k one or two\n")
    checkout.run("params")
    checkout.run("python", "-V")
    assert checkout.calls == ["venv", checkout.install_call(), checkout.install_call("[dev]")]


def test_makes_a_half_made_environment_again(checkout):
    checkout.run("params")
    (checkout.folder / ".venv" / ".complete").unlink()
    (checkout.folder / ".venv" / "left-over").touch()
    done = checkout.run("params")
    assert done.returncode == 0
    assert "removing .venv" in done.stderr
    assert not (checkout.folder / ".venv" / "left-over").exists()


def test_makes_the_environment_again_in_a_moved_folder(checkout, tmp_path):
    checkout.run("params")
    moved = tmp_path / "moved"
    checkout.folder.rename(moved)
    done = subprocess.run(
        [moved / "run", "params"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(moved / "fake-python")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "removing .venv" in done.stderr


def test_a_failed_first_install_fails_and_is_tried_again(checkout):
    (checkout.folder / "offline").touch()
    done = checkout.run("params")
    assert done.returncode == 1
    assert "pip could not install the project" in done.stderr
    assert done.stdout == ""
    (checkout.folder / "offline").unlink()
    assert checkout.run("params").stdout == "lm2 params\n"


def test_a_failed_update_keeps_the_environment(checkout):
    checkout.run("params")
    (checkout.folder / "offline").touch()
    assert checkout.run("test").returncode == 1
    assert checkout.run("params").stdout == "lm2 params\n"
    (checkout.folder / "offline").unlink()
    checkout.run("test")
    assert checkout.calls.count("venv") == 1


def test_an_interrupted_install_is_done_again_and_leaves_no_lock(tmp_path):
    checkout = Checkout(tmp_path / "project", install_seconds=1)
    process = checkout.start("params")
    while len(checkout.calls) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert checkout.run("params").stdout == "lm2 params\n"
    assert checkout.calls == ["venv", checkout.install_call()] * 2


def test_runs_at_the_same_time_install_once(tmp_path):
    checkout = Checkout(tmp_path / "project", install_seconds=0.5)
    processes = [checkout.start("params") for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [stdout for stdout, _ in outputs] == ["lm2 params\n"] * 3, outputs
    assert checkout.calls == ["venv", checkout.install_call()]
