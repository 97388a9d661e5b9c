"""What watches a run: updates that are not finite, compilations, and the signal to stop."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.errors import RunStopped
from mmeureka_jax.files import explain_write_errors
from mmeureka_jax.hosts import is_main, max_over_hosts
from mmeureka_jax.rl.groups import Part

logger = logging.getLogger(__name__)


class NonFiniteGuard:
    """Counts skipped updates, keeps their batches, and stops a run that keeps skipping."""

    def __init__(self, run_dir: Path, limit: int, counters: dict[str, int] | None, of_share: bool = False):
        """`of_share`: a batch is this host's share, and each host keeps its own; else all have the whole batch."""
        self._folder = Path(run_dir) / "nonfinite"
        self._suffix = f"_host{jax.process_index()}" if of_share and jax.process_count() > 1 else ""
        self._limit = limit
        self._stop = False
        self.counters = {"skipped_in_row": 0, "skipped": 0} | (counters or {})

    def check(self, metrics: Sequence[dict[str, Any]], batch_of: Callable[[int], Part], step: int) -> None:
        """Looks at the updates of one step, in order; `batch_of(i)` makes update i's batch again (host arrays)."""
        for number, row in enumerate(metrics):
            if not row["optimizer/skipped"]:
                self.counters["skipped_in_row"] = 0
                continue
            self.counters["skipped_in_row"] += 1
            self.counters["skipped"] += 1
            self._stop |= self.counters["skipped_in_row"] >= self._limit
            path = self._folder / f"step_{step:06d}_update_{number}{self._suffix}.npz"
            of_critic = ""
            if "critic/grad_norm" in row:
                of_critic = f", of the critic {row['loss/value']}, {row['critic/grad_norm']}"
            logger.warning(
                "step %d, update %d: loss %s, gradient norm %s%s; update skipped, batch saved to %s",
                step, number, row["loss/total"], row["optimizer/grad_norm"], of_critic, path,
            )  # fmt: skip
            if is_main() or self._suffix:
                with explain_write_errors(path):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    np.savez_compressed(path, **_flat(batch_of(number)))

    def stop_if_too_many(self) -> None:
        """Raises RunStopped once `optimizer.max_nonfinite_updates` updates in a row were skipped."""
        if self._stop:
            raise RunStopped(
                f"{self._limit} updates in a row had a loss or gradient that is not finite; the "
                f"parameters are those before them, and their batches are in {self._folder}. Lower "
                "optimizer.learning_rate (or rl.critic.learning_rate, if it is the critic's) or look at those batches; "
                "the same command continues from the last checkpoint"
            )


def _flat(part: Part) -> dict[str, Any]:
    """The arrays of a batch by dotted name, in types that NumPy reads by itself."""
    arrays = {}
    for path, value in itertools.chain(*map(jax.tree_util.tree_leaves_with_path, part)):
        array = np.asarray(value)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        arrays[name] = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    return arrays


class CompileCounter:
    """Counts XLA compilations of this process within a `with` block, to show that a steady state compiles nothing, and
    their seconds, tracing included."""

    _EVENT = "/jax/core/compile/backend_compile_duration"
    _TIMED = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration", _EVENT)

    def __init__(self) -> None:
        self.total = 0
        self._seen = 0
        self._intervals: list[tuple[float, float]] = []  # (begin, end), apart from one another
        self._lock = threading.Lock()  # programs are compiled in several threads

    def __enter__(self) -> CompileCounter:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event not in self._TIMED:
            return
        with self._lock:
            self.total += event == self._EVENT
            end = time.monotonic()
            while self._intervals and self._intervals[-1][0] >= end - duration_secs:
                self._intervals.pop()  # within this one: functions are traced while others are
            self._intervals.append((end - duration_secs, end))

    def since_last(self) -> int:
        new = self.total - self._seen
        self._seen = self.total
        return new

    def seconds_since_last(self) -> float:
        seconds = sum(end - begin for begin, end in self._intervals)
        self._intervals.clear()
        return seconds


_SAME_SIGNAL = 5.0  # seconds


class TerminationSignal:
    """Notes SIGTERM, which a scheduler sends before it takes a machine away, so that the step under way can end.

    A second one, some seconds later, ends the process at once; those that come together are one (a scheduler may tell a
    group of processes, and each of them its children). In threads other than the main one, where Python allows no
    handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self._noted: float | None = None
        self._previous: Any = None

    def __enter__(self) -> TerminationSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._noted is None:
            self._noted = now
        elif now - self._noted > _SAME_SIGNAL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def on_any_host(self) -> bool:
        """Whether it came, to this process or to another. All call it together."""
        return bool(max_over_hosts(int(self._noted is not None)))
