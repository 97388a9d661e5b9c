"""Random access to the rows of data files: several files as one, from other processes and many threads."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mmeureka_jax.data import readers
from mmeureka_jax.data.problems import open_problems


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(3):
        rows = [{"id": f"{shard}-{i}", "question": f"q{i}", "answer": f"{i}"} for i in range(5)]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"train-{shard}.parquet", row_group_size=2)
    return tmp_path


def test_folders_and_globs_concatenate_files_in_order(shards):
    everything = [f"{shard}-{i}" for shard in range(3) for i in range(5)]
    assert [problem.id for problem in open_problems(str(shards))] == everything
    assert [problem.id for problem in open_problems(str(shards / "train-[12].parquet"))] == everything[5:]
    with pytest.raises(IndexError):
        open_problems(str(shards))[15]


def test_sources_are_picklable_and_read_from_threads(shards, monkeypatch):
    cache = readers._RowGroupCache(max_bytes=1)  # every read evicts the group before
    monkeypatch.setattr(readers, "_row_groups", cache)
    source = pickle.loads(pickle.dumps(open_problems(str(shards))))
    order = [i * 7 % 15 for i in range(15)] * 4
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda i: source[i].id, order))
    assert ids == [f"{i // 5}-{i % 5}" for i in order]
    assert len(cache._groups) == 1
