"""Many processes as one run: they find each other, notice when one is lost, and end together.

JAX notices a lost process too, but late, and then ends the others from C++ with a stack trace, which Python cannot
catch. So the run watches itself, through the key-value store of JAX's coordination service, which process 0 holds:

    mmeureka/alive/I       a count that process I keeps raising; process 0 watches them
    mmeureka/news/I        exit code and message of process I, which is about to end
    mmeureka/news/lost     a process that has been silent for `mesh.heartbeat_seconds`
    mmeureka/news/broken   a connection between two processes broke: a shorter silence then means that one is lost

JAX ends a process at once when its connection to process 0 breaks. The other processes therefore connect through local
relays, whose connections never break: when the far side of a relay does, process 0 is lost, and the run says so first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from mmeureka_jax.errors import EXIT_LOST, UserError, brief
from mmeureka_jax.process.console import waiting

logger = logging.getLogger(__name__)

_ALIVE = "mmeureka/alive"
_NEWS = "mmeureka/news"
_JOIN_WITHIN = 300  # seconds
_WHAT_JOINING_NEEDS = (
    "Every one needs the same --coordinator HOST:PORT, where process 0 runs and the port is free, the same "
    "--num-processes and a --process-id of its own, from 0 on"
)
_LONGEST_PERIOD = 0.5  # seconds between two looks at the store
# In periods:
_PERIODS_OF_SILENCE = 8  # the silence that means a lost process once a connection between two processes has broken
_PERIODS_TO_TELL = 6  # when a process has ended, the time in which another may still say itself why it ends
_PERIODS_TO_READ = 3  # the time in which the others can read the news before process 0, which holds the store, ends
_BROKEN_CONNECTION = re.compile(
    r"gloo|nccl|connection|socket|broken pipe|unavailable|deadline.?exceeded|heartbeat|unhealthy|coordination", re.I
)

_watch: _Watch | None = None


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, limit: float, run_dir: str
) -> None:
    """Makes this process one of a run, which ends when another one is lost. JAX finds out what is None.

    Args:
        limit: seconds of silence after which a process is lost.

    Raises:
        UserError: the processes do not find each other.
    """
    global _watch
    import jax
    from jax._src.distributed import global_state

    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:9911; got {coordinator!r}")
    timer = threading.Timer(_JOIN_WITHIN, _give_up)
    timer.daemon = True
    timer.start()
    try:
        with waiting("joining the other processes of the run"), _relayed():
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                # JAX's own limits, after which it ends the process in its own way, are longer than the run's.
                initialization_timeout=_JOIN_WITHIN + 60,
                heartbeat_timeout_seconds=int(max(100, 4 * limit)),
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of the run do not find each other ({brief(error)}). {_WHAT_JOINING_NEEDS}"
        ) from error
    finally:
        timer.cancel()
    # Not `jax.process_count()`: that would start the devices, which needs all processes.
    if global_state.num_processes > 1:
        _watch = _Watch(global_state.client, global_state.process_id, global_state.num_processes, limit, run_dir)


def _give_up() -> None:
    _say(f"not all processes of the run were there within {_JOIN_WITHIN} seconds. {_WHAT_JOINING_NEEDS}")
    os._exit(EXIT_LOST)


def _say(message: str) -> None:
    """Writes a line above the bars, if there are any."""
    tqdm.write(f"mmeureka: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()


def leave() -> None:
    """Waits until all processes of the run are done; returns at once if there is only this one."""
    if _watch is not None:
        import jax

        _watch.wait_for_all()
        jax.distributed.shutdown()


def end(code: int, message: str) -> None:
    """Ends this process of a run, and tells the others, which end as well. Does nothing in a run of one process."""
    if _watch is not None:
        _watch.end(code, message)


def look_for_cause(error: BaseException) -> None:
    """Ends this process if an exception was caused by the end of another process, which may take seconds to find."""
    if _watch is not None and _BROKEN_CONNECTION.search(f"{error} {error.__cause__}"):
        _watch.wait_for_news()


def end_after(error: BaseException) -> None:
    """Ends this process of a run after an unexpected exception."""
    if _watch is not None:
        traceback.print_exception(error)
        _watch.end(1, f"{type(error).__name__}: {brief(error)}")


@contextlib.contextmanager
def _relayed() -> Iterator[None]:
    """Inside the block, JAX's client of the coordination service connects through a relay.

    There is no public way to do this. In a version of JAX with other internal names, the client connects directly, and
    JAX ends the others in its own way when process 0 is lost.
    """
    try:
        from jax._src.lib import _jax

        direct = _jax.get_distributed_runtime_client
    except (ImportError, AttributeError):
        logger.warning(
            "jax %s has other names inside than 0.10.2: if process 0 is lost, JAX ends the others with a stack",
            version("jax"),
        )
        yield
        return

    def through_relay(address: str, process: int, **options: Any) -> Any:
        return direct(address if process == 0 else _start_relay(address), process, **options)

    _jax.get_distributed_runtime_client = through_relay
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = direct


def _start_relay(address: str) -> str:
    """A local address whose connections lead to `address`. If that side closes one, this process ends; before there is
    a watch, JAX tries again."""
    import asyncio

    host, _, port = address.rpartition(":")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
            with contextlib.closing(far_writer):
                back, forth = (
                    asyncio.ensure_future(carry(*ends)) for ends in ((far_reader, writer), (reader, far_writer))
                )
                await asyncio.wait([back, forth], return_when=asyncio.FIRST_COMPLETED)
                # Both may have ended by now: with a reset, writing to the far side fails as well.
                is_by_jax = reader.at_eof() or reader.exception() is not None
                if not is_by_jax and _watch is not None:
                    _watch.coordinator_is_gone()
                back.cancel()
                forth.cancel()

    async def serve(listener: socket.socket) -> None:
        server = await asyncio.start_server(connected, sock=listener)
        await server.serve_forever()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: asyncio.run(serve(listener)), daemon=True, name="relay").start()
    # gRPC sends connections through a proxy if the environment names one, also those to this machine.
    without = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_grpc_proxy"] = ",".join(filter(None, (without, "127.0.0.1")))
    return f"127.0.0.1:{listener.getsockname()[1]}"


class _Watch:
    """Signals that this process is alive, and ends it when another one no longer is."""

    def __init__(self, client: Any, me: int, count: int, limit: float, run_dir: str):
        self._client = client
        self._me = me
        self._count = count
        self._limit = limit
        self._run_dir = run_dir
        self._period = min(_LONGEST_PERIOD, limit / 10)
        now = time.monotonic()
        self._answered = now  # when the store answered last
        self._heard = dict.fromkeys(range(1, count), now)  # when the count of each was last seen to rise
        self._counts: dict[int, str] = {}
        self._ended: dict[int, tuple[int, str]] = {}  # code and message
        self._lost: int | None = None
        self._broken = False
        self._ending = threading.Lock()  # held, and never released, by the thread that ends this process
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._beat, self._judge)]
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        number = 0
        while not self._stop.wait(self._period):
            number += 1
            with contextlib.suppress(Exception):  # the store does not answer: `_judge` notices
                self._set(f"{_ALIVE}/{self._me}", str(number))
                self._read_news(self._client.key_value_dir_get(_NEWS))
                if self._me == 0:
                    self._read_counts(self._client.key_value_dir_get(_ALIVE))
                self._answered = time.monotonic()

    def _set(self, key: str, value: str) -> None:
        self._client.key_value_set(key, value, allow_overwrite=True)

    def _read_news(self, entries: list[tuple[str, str]]) -> None:
        for key, value in entries:
            name = key.rpartition("/")[2]
            if name == "lost":
                self._lost = int(value)
            elif name == "broken":
                self._broken = True
            else:
                code, _, message = value.partition(" ")
                self._ended[int(name)] = (int(code), message)

    def _read_counts(self, entries: list[tuple[str, str]]) -> None:
        for key, value in entries:
            process = int(key.rpartition("/")[2])
            if self._counts.get(process) != value:
                self._counts[process] = value
                self._heard[process] = time.monotonic()

    def _judge(self) -> None:
        before = failed_since = time.monotonic()
        while not self._stop.wait(self._period / 2):
            now = time.monotonic()
            if now - before > self._limit / 2:  # this process itself was stopped, so silence proves nothing
                self._answered = now
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            limit = min(self._limit, _PERIODS_OF_SILENCE * self._period) if self._broken else self._limit
            if self._lost is not None:
                self._end_without(self._lost)
            if self._me and now - self._answered > limit:
                self._end_without(0)
            for process, heard in self._heard.items() if self._me == 0 else ():
                if process not in self._ended and self._answered - heard > limit:
                    self._end_without(process)
            failed = next((process for process, (code, _) in self._ended.items() if code), None)
            if failed is None:
                failed_since = now
            elif now - failed_since > _PERIODS_TO_TELL * self._period:
                self._end_with(failed)

    def wait_for_news(self) -> None:
        """Called after a connection to another process broke; returns if no process turns out to have ended."""
        with contextlib.suppress(Exception):
            self._set(f"{_NEWS}/broken", "")
        time.sleep((_PERIODS_OF_SILENCE + 2 * _PERIODS_TO_TELL) * self._period)

    def coordinator_is_gone(self) -> None:
        if self._stop.is_set():
            return
        if 0 in self._ended and self._ended[0][0]:
            self._end_with(0)
        self._end_without(self._lost if self._lost is not None else 0)

    def _end_without(self, process: int) -> None:
        self._ending.acquire()
        if self._me == 0:
            with contextlib.suppress(Exception):
                self._set(f"{_NEWS}/lost", str(process))
        self._exit(
            EXIT_LOST,
            f"process {process} of {self._count} is lost: it was killed, or it hangs, or its machine cannot be "
            f"reached. {_newest_checkpoint(self._run_dir)}",
        )

    def _end_with(self, process: int) -> None:
        self._ending.acquire()
        code, message = self._ended[process]
        self._exit(code, f"process {process} of {self._count} has ended, and this one ends with it: {message}")

    def end(self, code: int, message: str) -> NoReturn:
        self._ending.acquire()
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            self._set(f"{_NEWS}/{self._me}", f"{code} {message}")
        self._exit(code)

    def _exit(self, code: int, message: str | None = None) -> NoReturn:
        """Ends this process without the clean-up that JAX and the interpreter would wait for. Its children notice, and
        end too."""
        if message is not None:
            _say(message)
        if self._me == 0:  # the store ends with this process: let the others read first what has happened
            deadline = time.monotonic() + _PERIODS_TO_READ * self._period
            while time.monotonic() < deadline and len(self._ended) < self._count:
                time.sleep(self._period / 4)
        os._exit(code)

    def wait_for_all(self) -> None:
        """Returns when all processes are done, and ends the watch."""
        self._set(f"{_NEWS}/{self._me}", "0 ")
        while len(self._ended) < self._count or any(code for code, _ in self._ended.values()):
            time.sleep(self._period / 4)
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _newest_checkpoint(run_dir: str) -> str:
    """What there is to continue from. A shared disk may be gone with the lost process, so it has a few seconds."""
    found: list[Path] = []

    def look() -> None:
        folders = [*Path(run_dir).glob("checkpoints/*"), *Path(run_dir).glob("stage*/checkpoints/*")]
        # Checkpoints that are still being written have longer names.
        found.extend(folder for folder in folders if folder.name.isdecimal())
        found.sort(key=lambda folder: (folder.parts[-3].removeprefix("stage").zfill(9), int(folder.name)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(3.0)
    if thread.is_alive():
        return f"{run_dir} does not answer either; start the same command again on all hosts: it continues"
    if not found and any(Path(run_dir).glob("*.partial")):
        return "What was written is kept; start the same command again on all hosts"
    if not found:
        return "There is no complete checkpoint yet; start the same command again on all hosts"
    return (
        f"The newest complete checkpoint is that of step {found[-1].name} ({found[-1]}); start the same command again "
        "on all hosts: it continues from there"
    )
