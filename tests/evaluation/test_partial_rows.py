"""Rows of an interrupted command: which are kept, and that rows of other settings are never mixed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.partial_rows import partial_rows

IDS = list("abcdefg")
MADE_WITH = {"temperature": 0.5, "seed": 1}


class Killed(Exception):
    """Ends a block as a kill would: whatever is in the file stays."""


def interrupt(output: Path, count: int, tail: bytes = b"", made_with=MADE_WITH) -> None:
    with pytest.raises(Killed), partial_rows(output) as rows:
        assert rows.resume(made_with, IDS, per_batch=2) == 0
        for name in IDS[:count]:
            rows.add({"id": name, "text": "é"})
        with output.with_name("o.jsonl.partial").open("ab") as file:
            file.write(tail)
        raise Killed


def complete(output: Path, made_with=MADE_WITH, ids=IDS) -> int:
    with partial_rows(output) as rows:
        done = rows.resume(made_with, ids, per_batch=2)
        for name in ids[done:]:
            rows.add({"id": name, "text": "é"})
        assert [row["id"] for row in rows] == list(ids)
        rows.publish()
    return done


@pytest.mark.parametrize(
    ("count", "tail", "kept"),
    [
        (0, b"", 0),
        (1, b"", 0),  # the batch was cut short
        (4, b"", 4),
        (5, b"", 4),
        (7, b"", 7),  # the last batch is smaller
        (4, b'{"id": "e", "te', 4),
        (3, b'{"id": "d"}', 2),  # without the end of its line nothing says that it is whole
        (2, b"\0\0\0\0\n\xff\xfe\n", 2),  # a power cut
        (2, b'["c"]\n{"id": "d"}\n', 2),
        (2, b'{"id": "d"}\n{"id": "e"}\n', 2),  # rows of other problems
        (7, b'{"id": "more"}\n', 7),
    ],
)
def test_whole_batches_are_kept_and_the_rest_is_made_again(tmp_path, count, tail, kept):
    output = tmp_path / "o.jsonl"
    interrupt(output, count, tail)
    assert not output.exists()
    assert complete(output) == kept
    assert output.read_text() == "".join(f'{{"id": "{name}", "text": "é"}}\n' for name in IDS)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("change", [{"temperature": 1.0}, {"top_k": 5}])
def test_rows_of_other_settings_are_made_anew(tmp_path, caplog, change):
    output = tmp_path / "o.jsonl"
    interrupt(output, 4)
    with caplog.at_level(logging.WARNING):
        assert complete(output, MADE_WITH | change) == 0
    (key,) = change
    assert f"4 rows of an interrupted command were made with other settings ({key})" in caplog.text


def test_what_is_no_such_file_is_written_anew(tmp_path):
    output = tmp_path / "o.jsonl"
    for content in (b"", b'{"made_wi', b'{"made_with": 3}\n{"id": "a"}\n', b"\xff\n"):
        (tmp_path / "o.jsonl.partial").write_bytes(content)
        assert complete(output) == 0


def test_an_error_before_the_first_batch_leaves_all_as_it_was(tmp_path):
    output = tmp_path / "o.jsonl"
    interrupt(output, 1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError), partial_rows(output):
        raise UserError("no such checkpoint")
    assert list(tmp_path.iterdir()) == []
    interrupt(output, 4)
    with pytest.raises(UserError), partial_rows(output):
        raise UserError("no such checkpoint")
    assert complete(output) == 4


def test_two_at_once_do_not_mix(tmp_path):
    output = tmp_path / "o.jsonl"
    with partial_rows(output) as rows:
        rows.resume(MADE_WITH, IDS, per_batch=2)
        with pytest.raises(UserError, match="o.jsonl: another process is writing it"), partial_rows(output):
            pass
        rows.add({"id": "a"})
        assert json.loads((tmp_path / "o.jsonl.partial").read_text().splitlines()[1]) == {"id": "a"}


def test_a_row_that_cannot_be_written_leaves_whole_rows(tmp_path, monkeypatch):
    output = tmp_path / "o.jsonl"
    interrupt(output, 4)

    class Full:
        def __init__(self, file):
            self._file = file
            self.fileno = file.fileno
            self.truncate = file.truncate

        def write(self, data):
            self._file.write(data[:5])
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="o.jsonl: cannot write: No space left"), partial_rows(output) as rows:
        rows.resume(MADE_WITH, IDS, per_batch=2)
        monkeypatch.setattr(rows, "_file", Full(rows._file))
        rows.add({"id": "e"})
    assert complete(output) == 4
