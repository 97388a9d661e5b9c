"""Batches of processed problems for one host, from a stream that is the same however many hosts read it.

    position    0   1   2   3   4   5 | 6   7   8   9 ...      epochs of the shuffled rows, one after the other
    host 0 of 2     x       x       x   |     x       x
    host 1 of 2         x       x       | x       x       ...

Grain shuffles by (seed, epoch), finds any position at once, and prepares problems ahead in threads or processes. The
state is the global position of the batch that comes next, so a run may resume with other numbers of workers and hosts.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from mmeureka_jax.data.problems import ProblemSource
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.models.batch import Prompt

_MAX_THREADS = 8


@dataclass(frozen=True)
class LoadedProblem:
    """A problem with its processed prompt, and its position in the stream (epoch * rows + place in the epoch)."""

    problem: Problem
    prompt: Prompt
    order: int


@dataclass(frozen=True)
class _Load:
    """Reads and processes a row; runs in data workers."""

    source: ProblemSource
    processor: Callable[[Problem], Prompt]

    def __call__(self, order: int, row: int) -> LoadedProblem:
        problem = self.source[row]
        try:
            return LoadedProblem(problem, self.processor(problem), order)
        except UserError as error:
            if isinstance(error, RowError):  # from the processor; it names the problem
                raise RowError(f"{self.source.where(row)}: {error}", error.kind, problem.id) from None
            raise RowError(
                f"{self.source.where(row)}: problem {problem.id!r}: {error}", problem_id=problem.id
            ) from None


def _begin_worker(index: int, count: int) -> None:
    """Leaves signals to the main process, which decides when its workers end, and ends with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@dataclass(frozen=True)
class RowOrder:
    """The rows that each epoch reads once: shuffled anew by (seed, epoch), or in the order of `indices`."""

    indices: Sequence[int]
    seed: int
    shuffle: bool


class ProblemLoader:
    """An endless iterator over this host's batches (lists of `batch_size` `LoadedProblem`s), with an exact state.

    Args:
        processor: picklable if `workers` > 0.
        batch_size: rows of this host.
        host: (index, count): this host reads the positions index + k * count.
        workers: processes that read and process; 0 means threads of this one.
        prefetch: batches prepared ahead; 0 means none.

    Raises:
        UserError: no rows. While iterating, RowError (naming file, row and id) for a row that turns out to be unusable.
    """

    def __init__(
        self,
        source: ProblemSource,
        order: RowOrder,
        processor: Callable[[Problem], Prompt],
        *,
        batch_size: int,
        host: tuple[int, int] = (0, 1),
        workers: int = 0,
        prefetch: int = 2,
    ):
        if not len(order.indices):
            raise UserError(f"{source.name}: no usable rows; see `mmeureka data check`")
        self._batch_size = batch_size
        self._host_index, self._host_count = host
        self._workers = workers
        self._prefetch = prefetch
        self._identity = {
            "num_problems": len(order.indices),
            "rows": hashlib.sha256(np.asarray(order.indices, np.int64).tobytes()).hexdigest()[:16],
            "seed": order.seed,
            "shuffle": order.shuffle,
        }
        rows = grain.MapDataset.source(list(order.indices)).seed(order.seed % 2**32)
        if order.shuffle:
            rows = rows.shuffle()
        self._source = source
        self._rows = rows.repeat()
        self._stream = self._rows.map_with_index(_Load(source, processor))
        self._next_position = 0
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> Iterator[list[LoadedProblem]]:
        return self

    def __next__(self) -> list[LoadedProblem]:
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        batch = [next(self._iterator) for _ in range(self._batch_size)]
        self._next_position += self._batch_size * self._host_count
        return batch

    def problem_at(self, order: int) -> Problem:
        """The problem at a position of the stream, of whichever host."""
        return self._source[self._rows[order]]

    def _dataset(self) -> grain.IterDataset:
        rows = self._stream[self._next_position + self._host_index :: self._host_count]
        ahead = self._prefetch * self._batch_size
        if self._workers == 0 or ahead == 0:
            threads = min(os.cpu_count() or 1, _MAX_THREADS, ahead)
            return rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        if not flags.FLAGS.is_parsed():  # Grain's processes read absl flags, which this program does not use
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=-(-ahead // self._workers))
        in_order = rows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        return in_order.mp_prefetch(options, worker_init_fn=_begin_worker)

    def get_state(self) -> dict[str, Any]:
        """Where the stream continues after the batch returned last; JSON-able."""
        return {"next_position": self._next_position, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called. Raises UserError if the rows, the seed or the shuffling differ."""
        saved = {key: value for key, value in state.items() if key in self._identity}
        if saved != {key: self._identity[key] for key in saved}:
            raise UserError(
                f"the data stream was saved with {saved} but is opened with {self._identity}; restore the data and its"
                " settings, or start a new run"
            )
        self.close()
        self._next_position = state["next_position"]

    def close(self) -> None:
        """Stops reading ahead. The next batch starts it again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
