"""Whatever a row holds, it becomes a Problem that can be used, or a RowError that can be printed: nothing else."""

import base64
import datetime
import io
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from helpers.commands import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmeureka_jax.commands.data.show import _article, _text
from mmeureka_jax.data.pictures import picture_notes
from mmeureka_jax.data.problems import ProblemSource
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.data.readers import Table
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

PICTURE_COLUMNS = (
    *("image", "images", "image_path", "image_url", "image_urls", "image_1", "image_2", "image_10", "decoded_image"),
    *("img", "picture", "figure", "left_image"),
)
COLUMNS = (
    *("id", "message", "conversations", "messages", "prompt", "question", "problem", "query", "response", "answer"),
    *("solution", "final_answer", "context", "system", "reward_model", "metadata", "extra_info", "file_name", "video"),
    *PICTURE_COLUMNS,
)
INNER = (
    *("role", "content", "from", "value", "type", "text", "ground_truth"),
    *("image", "image_url", "url", "path", "bytes", "images"),
)


def encoded(mode: str = "RGB", file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (31, 33)).save(buffer, file_format)
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


PATHS = [
    "a.png",
    "gone.png",
    "pipe.png",
    "loop.png",
    "folder.png",
    "/dev/zero",
    "../a.png",
    "a\0.png",
    "x" * 5000,
    ".png",
]
ADDRESSES = [
    *(f"data:image/png;base64,{base64_of(encoded())}", base64_of(encoded()), "data:,", "data:image/png;base64,%%%"),
    *("https://example.org/a.png", "file:///dev/zero", "file://%00", "iVBORw0KGgo" * 99),
]
TEXTS = [
    *("<image>", "<image_1> <image_2>", "<image 3>", "How many?", "<answer> 3 </answer>", "\\boxed{", "#### 3\n#### 4"),
    *("<|im_end|>", "<|image_pad|>", "[]", '[{"role": "user", "content": "q"}]', "[" * 3000, "{}", "half \ud800"),
    *("user", "assistant", "system", "human", "gpt", "text", "image", "image_url"),
]
OBJECTS = [Decimal("3.00"), Decimal("NaN"), datetime.date(2024, 1, 1), encoded(), encoded("I;16", "TIFF")]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers() | st.just(10**400),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=20),  # lone surrogates and NUL among them
    st.binary(max_size=20),
    *map(st.sampled_from, (OBJECTS, PATHS, ADDRESSES, TEXTS)),
)
PARTS = [
    *({"type": "image"}, {"type": "image", "image": "a.png"}, {"type": "text", "text": "<image>?"}),
    *({"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "video"}),
]
CONTENTS = st.sampled_from(["How many?", "<image> and <image>", "<image_2><image_1>", "3"])
CONTENTS |= st.lists(st.sampled_from(PARTS), max_size=4)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "robot"])},
        optional={"content": CONTENTS, "images": st.sampled_from([["a.png"], "a.png"])},
    ),
    max_size=4,
)


def nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=3)


VALUES = LEAVES | nested(LEAVES | nested(LEAVES)) | TURNS
PICTURES = st.sampled_from(["a.png", encoded("I;16", "TIFF"), {"bytes": encoded(), "path": None}, *PATHS, *ADDRESSES])
ROWS = st.builds(
    lambda form, pictures, others: form | pictures | others,
    st.fixed_dictionaries({"question": st.sampled_from(TEXTS)})
    | st.fixed_dictionaries({"messages": TURNS})
    | st.fixed_dictionaries({"prompt": TURNS | st.sampled_from(TEXTS)})
    | st.just({}),
    st.dictionaries(st.sampled_from(PICTURE_COLUMNS), PICTURES | st.lists(PICTURES, max_size=2), max_size=2),
    st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), VALUES, max_size=3),
)


class Rows(Table):
    """Rows in memory, of any values: those of JSON, of Parquet and of TFDS."""

    name = "rows"

    def __init__(self, folder: Path, rows: list[dict]):
        self.folder = folder
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return self._rows[index]

    def where(self, index: int) -> str:
        return f"rows:{index}"

    def fingerprint(self) -> str:
        return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.png").write_bytes(encoded("RGBA"))
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    write_tiny_checkpoint(folder / "model", TINY)
    return folder


@pytest.fixture(scope="module")
def processor(folder) -> Processor:
    return Processor.from_checkpoint(folder / "model", prompt_style="instruct", max_prompt_tokens=500)


GOOD = {"question": "How many?", "answer": "3"}


def use(folder: Path, processor: Processor, row: dict) -> Problem | RowError:
    """The row as every command meets it; any exception but RowError goes through."""
    problem: Problem | RowError
    source = ProblemSource([Rows(folder, [GOOD, row])], "rows", allow_outside_root=True, require_answer=False)
    try:
        problem = source[1]
    except RowError as error:
        str(error).encode()
        assert "rows:1" in str(error)
        json.dumps(error.problem_id, ensure_ascii=False).encode()
        return error
    kept = {"id": problem.id, "messages": problem.messages, "answer": problem.answer, "metadata": problem.metadata}
    json.dumps(kept, ensure_ascii=False).encode()
    _text(1, problem).encode()
    _article(1, problem).encode()
    try:
        processor.measure(problem)
        processor(problem)
        for ref in problem.images:
            picture_notes(ref)
    except RowError as error:
        str(error).encode()
        return error
    return problem


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    row=ROWS, form=st.sampled_from([{}, {"question": "How many?"}, {"messages": [{"role": "user", "content": "q"}]}])
)
def test_any_row_is_a_problem_or_a_row_error(folder, processor, row, form):
    use(folder, processor, form | row)
