"""Functions of users' own files in the training process: nothing in them ends or hangs a command without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers.commands import mmeureka

from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError
from mmeureka_jax.user_code import load_explained, load_function

SIGNATURE = "function(rewards) -> advantages"


def spec(tmp_path, text: str) -> str:
    file = tmp_path / "own.py"
    file.write_text(text + "\ndef f(rewards): return rewards\n")
    return f"{file}:f"


@pytest.mark.parametrize(
    "end", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise KeyboardInterrupt", "1 / 0"]
)
@pytest.mark.parametrize("key", ["rl.advantage", "rl.loss"])
def test_a_command_says_that_a_file_does_not_import(tmp_path, capsys, key, end):
    code = mmeureka("train", "configs/smoke.yaml", f"run_dir={tmp_path / 'run'}", f"{key}={spec(tmp_path, end)}")
    assert code == EXIT_BAD_INPUT
    assert f"mmeureka: error: {key}: {tmp_path / 'own.py'} does not import: " in capsys.readouterr().err


def test_an_import_that_does_not_end_is_an_error(tmp_path):
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match=r"own.py does not import: TimeoutError: not done after 0.2 s \(own.py:1\)"):
        load_function("rl.loss", spec(tmp_path, "while True: pass"), SIGNATURE, import_limit=0.2)
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_ctrl_c_during_an_import_is_the_user_s(tmp_path):
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        load_function("rl.loss", spec(tmp_path, "import time; time.sleep(60)"), SIGNATURE)
    timer.join()


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX has threads here; the child ends at once
def test_a_file_may_fork_and_set_handlers(tmp_path):
    text = "import os, signal\nif os.fork() == 0: os._exit(7)\ncode = os.waitstatus_to_exitcode(os.wait()[1])\n"
    text += "def handler(*_): pass\nsignal.signal(signal.SIGALRM, handler)\n"
    before = signal.getsignal(signal.SIGALRM)
    try:
        function = load_function("rl.loss", spec(tmp_path, text), SIGNATURE)
        assert function.__globals__["code"] == 7
        assert signal.getsignal(signal.SIGALRM) is function.__globals__["handler"]
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "end", ["import os; os._exit(3)", "import sys; sys.exit(0)", "raise ValueError('no such thing')"]
)
def test_a_function_that_fails_says_what_and_where(tmp_path, end):
    file = tmp_path / "own.py"
    file.write_text(f"def f(rewards):\n    {end}\n")
    function = load_explained("rl.advantage", f"{file}:f", SIGNATURE)
    with pytest.raises(UserError, match=rf"rl.advantage: f of {file} failed: \w+: .* \(own.py:2\)"):
        function([1.0])


def test_another_thread_may_end_the_process_while_a_file_is_imported(tmp_path):
    """As the one that watches the other processes of a run does."""
    script = (
        "import os, sys, threading\n"
        "from mmeureka_jax.user_code import load_function\n"
        "threading.Timer(0.2, lambda: os._exit(75)).start()\n"
        f"load_function('rl.loss', sys.argv[1], {SIGNATURE!r})\n"
    )
    file = spec(tmp_path, "import time; time.sleep(5)")
    assert subprocess.run([sys.executable, "-c", script, file]).returncode == 75
