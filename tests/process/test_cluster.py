"""Two processes of a run, without a model: how one ends when the other does.

Whole runs are in `training/test_distributed.py`.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from helpers.commands import environment, free_port

from mmeureka_jax.errors import UserError
from mmeureka_jax.process import cluster

# The command line with a command that joins the run and then works, or ends, as the last argument says.
CODE = """
import sys, time
from mmeureka_jax import cli
from mmeureka_jax.commands import report
from mmeureka_jax.errors import UserError
from mmeureka_jax.process import cluster

def work(args):
    address, me, run_dir, what = sys.argv[1:]
    cluster._JOIN_WITHIN = 5 if what == "alone" else 300
    cluster.join(address, 2, int(me), limit=3.0, run_dir=run_dir)
    print("up", flush=True)
    if what == "error":
        raise UserError("its disk is broken")
    if what == "crash":
        raise KeyError("boom")
    if what == "broken":
        time.sleep(1)
        raise RuntimeError("Gloo all-reduce failed: Connection closed by peer")
    time.sleep(0 if what == "done" else 60)

report.run = work
sys.exit(cli.main(["report", "x"]))
"""


class Two:
    """Two processes of a run; `what` each does once it has joined, such as `work` until it is ended."""

    def __init__(self, folder, *what: str):
        (folder / "checkpoints" / "7").mkdir(parents=True)
        (folder / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
        address = f"127.0.0.1:{free_port()}"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", CODE, address, str(me), str(folder), does],
                env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for me, does in enumerate(what)
        ]  # fmt: skip
        for process in self.processes:
            assert process.stdout is not None and process.stdout.readline() == "up\n"

    def end_of(self, index: int) -> tuple[int, str]:
        """Exit code and what was said in the end, which has no traceback of Python and no stack of C++."""
        try:
            _, said = self.processes[index].communicate(timeout=35)
        finally:
            self.processes[index].kill()
        return self.processes[index].returncode, said


LOST = "mmeureka: process {} of 2 is lost: .* The newest complete checkpoint is that of step 7 .* continues from there"


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP)])
def test_a_lost_process_ends_the_other(tmp_path, victim, number):
    """Killed or stopped, the coordinator too; where it was only stopped it ends as well, once it runs again."""
    two = Two(tmp_path, "work", "work")
    two.processes[victim].send_signal(number)
    code, said = two.end_of(1 - victim)
    assert code == 75 and "Traceback" not in said and "Check failure" not in said
    assert_last_line(said, LOST.format(victim))
    two.processes[victim].send_signal(signal.SIGCONT)
    assert two.end_of(victim)[0] == (-9 if number == signal.SIGKILL else 75)


def assert_last_line(said: str, pattern: str) -> None:
    assert re.fullmatch(pattern, said.splitlines()[-1]), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "what", "code", "says"), [(1, "error", 2, "its disk is broken"), (0, "crash", 1, "KeyError: 'boom'")]
)
def test_a_process_that_ends_by_itself_says_so_to_the_other(tmp_path, which, what, code, says):
    two = Two(tmp_path, *("work", "work")[:which], what, *("work", "work")[which + 1 :])
    own, said = two.end_of(which)
    other, heard = two.end_of(1 - which)
    assert own == other == code and says in said
    assert_last_line(heard, f"mmeureka: process {which} of 2 has ended, and this one ends with it: {says}")
    assert "Traceback" not in heard


@pytest.mark.slow
def test_processes_that_are_done_wait_for_each_other(tmp_path):
    two = Two(tmp_path, "done", "done")
    assert [two.end_of(index)[0] for index in (0, 1)] == [0, 0]


@pytest.mark.slow
def test_a_broken_connection_to_a_living_process_is_an_error_of_its_own(tmp_path):
    """JAX's exception is shown when no process turns out to be lost."""
    two = Two(tmp_path, "broken", "work")
    own, said = two.end_of(0)
    other, heard = two.end_of(1)
    assert own == other == 1 and "RuntimeError: Gloo all-reduce failed" in said
    assert_last_line(heard, "mmeureka: process 0 of 2 has ended, and this one ends with it: RuntimeError: Gloo .*")


@pytest.mark.slow
def test_a_process_that_stays_alone_gives_up(tmp_path):
    command = [sys.executable, "-c", CODE, f"127.0.0.1:{free_port()}", "1", str(tmp_path), "alone"]
    done = subprocess.run(command, env=environment(), text=True, capture_output=True, timeout=60)
    assert done.returncode == 75 and "Check failure" not in done.stderr
    assert "not all processes of the run were there within 5 seconds" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("address", "process", "says"),
    [
        ("127.0.0.1:7", 5, r"do not find each other \(.*the same --coordinator HOST:PORT"),
        ("127.0.0.1", 1, "--coordinator must be HOST:PORT, .*; got '127.0.0.1'"),
        ("127.0.0.1:port", 1, "--coordinator must be HOST:PORT"),
    ],
)
def test_arguments_that_cannot_be_right(address, process, says):
    with pytest.raises(UserError, match=says):
        cluster.join(address, 2, process, limit=3.0, run_dir="x")


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        ([], "There is no complete checkpoint yet"),
        (["checkpoints/9", "checkpoints/10"], "that of step 10"),
        (["stage1/checkpoints/600", "stage2/checkpoints/20"], r"that of step 20 \(.*stage2"),
        (["checkpoints/3", "checkpoints/4.orbax-checkpoint-tmp", "checkpoints/5.damaged"], "that of step 3"),
    ],
)
def test_the_newest_complete_checkpoint(tmp_path, folders, says):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert re.search(says, cluster._newest_checkpoint(str(tmp_path)))


class Coordinator:
    """A server that ends its one connection with a reset, or reads until the other side ends it."""

    def __init__(self, resets: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._resets = resets
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            while connection.recv(1024) and not self._resets:
                pass
            if self._resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("resets", [True, False])
def test_the_relay_tells_which_side_ended_a_connection(monkeypatch, resets):
    gone = threading.Event()
    monkeypatch.setattr(cluster, "_watch", SimpleNamespace(coordinator_is_gone=gone.set))
    monkeypatch.setenv("no_grpc_proxy", "")
    coordinator = Coordinator(resets)
    host, port = cluster._start_relay(coordinator.address).split(":")
    with socket.create_connection((host, int(port))) as mine:
        with contextlib.suppress(OSError):
            for _ in range(100 if resets else 3):  # it still writes when the reset comes
                mine.sendall(b"x" * 4096)
        assert not resets or gone.wait(10)
    coordinator.thread.join(10)
    assert resets or not gone.wait(0.3)
