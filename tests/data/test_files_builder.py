"""`build_dataset` writes a TFDS dataset that reads back as the same problems, without the code that wrote it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmeureka_jax.data.builders.files import build_dataset
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.data.record import Problem
from mmeureka_jax.errors import UserError


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def picture(shade: int, file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(buffer, file_format)
    return buffer.getvalue()


def write_problems(folder: Path, rows: int = 6) -> str:
    """Rows with 0, 1 and 2 pictures, in PNG and JPEG, with and without answers in other letters."""
    lines = []
    for i in range(rows):
        names = [f"{i}-{k}.{suffix}" for k, suffix in enumerate(["png", "jpg"][: i % 3])]
        for name in names:
            (folder / name).write_bytes(picture(i, "PNG" if name.endswith("png") else "JPEG"))
        content = [{"type": "text", "text": f"Größe {i}?"}, *({"type": "image", "image": name} for name in names)]
        row = {"id": f"p{i}", "messages": [{"role": "user", "content": content}], "answer": f"{i} ≤ x", "level": i}
        lines.append(json.dumps(row))
    (folder / "p.jsonl").write_text("\n".join(lines))
    return str(folder / "p.jsonl")


def contents(problem: Problem) -> tuple:
    pictures = [ref.read_bytes() for ref in problem.images]
    return problem.id, problem.messages, pictures, problem.answer, dict(problem.metadata)


def test_problems_read_back_equal_and_in_order(tmp_path, data_dir):
    spec = write_problems(tmp_path)
    built = build_dataset(spec, "mine", show_progress=False)
    assert (built.directory, built.spec, built.num_rows) == (data_dir / "mine" / "1.0.0", "tfds:mine@train", 6)
    expected = [contents(problem) for problem in open_problems(spec)]
    assert [contents(problem) for problem in open_problems("tfds:mine@train")] == expected
    assert [contents(problem) for problem in open_problems("tfds:mine:1.0.0@train[2:4]")] == expected[2:4]
    assert [path.name for path in data_dir.iterdir()] == ["mine"]


def test_rows_with_numbered_markers_read_back_equal(tmp_path, data_dir, caplog):
    write_problems(tmp_path)
    row = {"question": "<image_2> or <image_1>? <image_2>!", "image_1": "2-0.png", "image_2": "2-1.jpg", "answer": "2"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row | {"left_image": "1-0.png"}))
    build_dataset(str(tmp_path / "q.jsonl"), "marked", show_progress=False)
    assert "column 'left_image' looks like a picture and is not read (in 1 of" in caplog.text
    (before,) = open_problems(str(tmp_path / "q.jsonl"))
    (after,) = open_problems("tfds:marked@train")
    assert contents(after)[1:] == contents(before)[1:]
    assert before.question == " or ? image 2!" and before.images[0].path.name == "2-1.jpg"


def test_another_split_is_added_and_an_existing_one_is_not_touched(tmp_path, data_dir):
    spec = write_problems(tmp_path)
    build_dataset(spec, "mine", show_progress=False)
    before = open_problems("tfds:mine@train[:3]").fingerprint()
    (tmp_path / "test").mkdir()
    build_dataset(write_problems(tmp_path / "test", rows=3), "mine", split="test", show_progress=False)
    assert len(open_problems("tfds:mine@train")) == 6 and len(open_problems("tfds:mine@test")) == 3
    with pytest.raises(UserError, match="split train exists"):
        build_dataset(spec, "mine", show_progress=False)
    assert open_problems("tfds:mine@train[:3]").fingerprint() == before
    with pytest.raises(UserError, match="no such split; mine has train, test"):
        open_problems("tfds:mine@validation")


def test_unusable_rows_are_an_error_or_left_out_by_name(tmp_path, data_dir):
    spec = write_problems(tmp_path)
    (tmp_path / "1-0.png").unlink()
    (tmp_path / "2-1.jpg").write_bytes(picture(2, "JPEG")[:-200])
    with pytest.raises(UserError, match=r"2 of 6 rows cannot be used(.|\n)*'p1'.*1-0\.png(.|\n)*'p2'.*2-1\.jpg"):
        build_dataset(spec, "mine", show_progress=False)
    assert list(data_dir.iterdir()) == []
    built = build_dataset(spec, "mine", skip_unusable=True, show_progress=False)
    assert built.num_rows == 4 and len(built.rejected) == 2
    assert [problem.id for problem in open_problems("tfds:mine@train")] == ["p0", "p3", "p4", "p5"]


@pytest.mark.parametrize("name", ["Mine", "my-data", "1st", "shapes", "a/b"])
def test_names_that_tfds_does_not_take(tmp_path, data_dir, name):
    with pytest.raises(UserError, match="dataset name"):
        build_dataset(write_problems(tmp_path), name, show_progress=False)


def test_a_data_set_without_usable_rows_is_not_written(tmp_path, data_dir):
    (tmp_path / "p.jsonl").write_text('{"id": "a", "question": "q"}')
    with pytest.raises(UserError, match="1 of 1 rows cannot be used"):
        build_dataset(str(tmp_path / "p.jsonl"), "mine", skip_unusable=True, show_progress=False)
    assert list(data_dir.iterdir()) == []


def test_tfds_alone_reads_it_without_tensorflow(tmp_path, data_dir):
    built = build_dataset(write_problems(tmp_path), "mine", show_progress=False)
    script = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({str(built.directory)!r}).as_data_source('train')\n"
        "assert len(source) == 6 and source[2]['id'] == b'p2' and len(source[2]['images']) == 2\n"
        "assert 'tensorflow' not in sys.modules and 'mmeureka_jax' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
