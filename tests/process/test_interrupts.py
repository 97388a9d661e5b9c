"""Ctrl-C and SIGTERM, wherever they come: the exit code of shells, one line, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers.commands import environment

STOPPED = {signal.SIGINT: "mmeureka: interrupted", signal.SIGTERM: "mmeureka: stopped by SIGTERM"}

# What `mmeureka report` does in these tests. `ready()` says that the signal may come.
PLACES = {
    "in our code": "ready(); time.sleep(60)",
    "in a pool of threads": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(2) as pool:
            pool.submit(time.sleep, 0.5)
            ready()
    """,
    "in an import": "sys.path.insert(0, os.getcwd()); import slow_import",
    "where a library makes another exception of it": """
        try:
            ready(); time.sleep(60)
        except BaseException as error:
            raise RuntimeError("callback failed") from error
    """,
    "in a destructor": """
        class Slow:
            def __del__(self):
                ready(); time.sleep(60)
        slow = Slow()
        del slow
        time.sleep(60)
    """,
    "in a constructor whose work a destructor uses": """
        class Half:
            def __init__(self):
                ready(); time.sleep(60)
                self.made = True
            def __del__(self):
                self.made
        Half()
    """,
    "after a string was executed": """
        exec("ready(); time.sleep(60)", globals())
    """,
    "at the end of the process": """
        import atexit
        atexit.register(lambda: (ready(), time.sleep(60)))
    """,
}
# The second Ctrl-C comes at the second `ready()`.
CLEANING = {
    "in our clean-up": """
        try:
            ready(); time.sleep(60)
        finally:
            ready(); time.sleep(60)
    """,
    "in a call that does not return": """
        import hashlib, threading
        for seconds in (0.5, 1.0):
            threading.Timer(seconds, ready).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    """,
}


def start(folder: Path, body: str) -> subprocess.Popen:
    (folder / "slow_import.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(0.5)\n")
    code = f"""
import os, sys, time
from mmeureka_jax import __main__
from mmeureka_jax.commands import report
def ready():
    print("ready", flush=True)
def run(_):
{textwrap.indent(textwrap.dedent(body), "    ")}
report.run = run
sys.argv = ["mmeureka", "report", "x"]
sys.exit(__main__.main())
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def interrupt(process: subprocess.Popen, number: int, times: int = 1) -> str:
    """What it says on stderr."""
    for _ in range(times):
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(number)
    return process.communicate(timeout=30)[1]


@pytest.mark.parametrize(
    ("place", "number"), [*((place, signal.SIGINT) for place in PLACES), ("in our code", signal.SIGTERM)]
)
def test_a_signal_ends_a_command_with_one_line(tmp_path, place, number):
    process = start(tmp_path, PLACES[place])
    assert interrupt(process, number) == f"{STOPPED[number]}\n"
    assert process.returncode == 128 + number


@pytest.mark.parametrize("place", CLEANING)
def test_a_second_ctrl_c_ends_it_at_once(tmp_path, place):
    process = start(tmp_path, CLEANING[place])
    assert interrupt(process, signal.SIGINT, times=2) == f"{STOPPED[signal.SIGINT]}\n"
    assert process.returncode == 130


def test_a_module_in_another_language_is_made_first(tmp_path):
    process = start(tmp_path, """
        import _imp, _json
        from importlib.machinery import ExtensionFileLoader

        def exec_dynamic(module):
            ready(); time.sleep(0.5); print("made", flush=True)

        _imp.exec_dynamic = exec_dynamic
        ExtensionFileLoader("_json", _json.__file__).exec_module(_json)
        time.sleep(60)
    """)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("made\n", "mmeureka: interrupted\n")
    assert process.returncode == 130


def test_before_our_own_imports_are_done(tmp_path):
    (tmp_path / "yaml.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(0.5)\n")
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "mmeureka_jax.cli", "report", "x"], env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert interrupt(process, signal.SIGINT) == "mmeureka: interrupted\n"
    assert process.returncode == 130


def test_a_forked_process_ends_as_if_nothing_were_there(tmp_path):
    process = start(tmp_path, """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b"begun")
            time.sleep(60)
        os.read(reader, 5)
        os.kill(child, 15)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) + 100)
    """)  # fmt: skip
    assert (process.wait(timeout=30), process.stderr.read()) == (100 - signal.SIGTERM, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl")
def test_a_command_ends_with_the_process_that_started_it(tmp_path):
    code = """
import subprocess, sys, time
from mmeureka_jax.process import interrupts
code = "import os, time; from mmeureka_jax.process.interrupts import install; install(); "
code += "print(os.getpid(), flush=True); "
subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"], env=interrupts.environment_of_child())
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
