"""The data check finds every kind of unusable row, names it, and is quick the second time unless something changed."""

import io
import json
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.data import check
from mmeureka_jax.data.check import CheckReport, check_problems
from mmeureka_jax.data.pictures import read_picture
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.data.record import ImageRef, Problem, RowError


class FakeProcessor:
    """Ten tokens a word and two windows a picture; at most `limit` tokens."""

    def __init__(self, limit: int = 100):
        self.limit = limit

    def measure(self, problem: Problem) -> tuple[int, int]:
        tokens = 10 * len(problem.question.split())
        if tokens > self.limit:
            raise RowError(f"problem {problem.id!r}: {tokens} tokens", "prompt too long", problem.id)
        return tokens, 2 * len(problem.images)


class FaultyProcessor(FakeProcessor):
    def measure(self, problem: Problem) -> tuple[int, int]:
        if problem.id == "odd":
            raise ZeroDivisionError("a fault")
        return super().measure(problem)


def png(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def row(name: str, question: str = "What is it?", answer: str = "4", image: str | None = "good.png") -> dict:
    return {"id": name, "question": question, "answer": answer, "image_path": image}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "truncated.png").write_bytes(png(200, 200)[:5000])
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "text.png").write_text("not a picture")
    return tmp_path


def write(folder: Path, rows: list[dict | str]) -> str:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / "p.jsonl").write_text("\n".join(lines))
    return str(folder / "p.jsonl")


def run(spec: str, folder: Path, processor=None, **options) -> CheckReport:
    return check_problems(open_problems(spec), processor, progress=False, cache_dir=folder / "cache", **options)


def test_every_unusable_row_is_found_with_its_kind_and_id(folder):
    rows = [
        row("first"),
        row("gone", image="gone.png"),
        row("truncated", image="truncated.png"),
        row("bomb", image="bomb.png"),
        row("text", image="text.png"),
        row("outside", image="/etc/hostname"),
        row("first"),
        row("long", question="word " * 11),
        row("no answer", answer=""),
        row("no gold", answer="\\frac{1}{"),
        '{"id": "cut off',
        row("last", question="one two", answer="$\\frac{1}{2}$", image=None),
        row("gone"),  # the id of a row that is rejected
        row("token", answer="3<|im_end|>"),
        row("foreign token", answer="3<｜end▁of▁sentence｜>"),
    ]
    report = run(write(folder, rows), folder, FakeProcessor())
    assert report.usable == [0, 11]
    found = [(rejected.row, rejected.id, rejected.kind) for rejected in report.rejected]
    assert found == [
        (1, "gone", "missing image"),
        (2, "truncated", "broken image"),
        (3, "bomb", "broken image"),
        (4, "text", "broken image"),
        (5, "outside", "image outside the root"),
        (6, "first", "duplicate id"),
        (7, "long", "prompt too long"),
        (8, "no answer", "no answer"),
        (9, "no gold", "gold answer does not parse"),
        (10, None, "malformed row"),
        (12, "gone", "duplicate id"),
        (13, "token", "gold answer does not parse"),
        (14, "foreign token", "gold answer does not parse"),
    ]
    for rejected in report.rejected:
        assert repr(rejected.id) in rejected.reason if rejected.id else "p.jsonl:11" in rejected.reason
    assert (report.max_tokens, report.max_windows) == (30, 2)


def test_the_summary_counts_by_kind(folder):
    rows = [row("a"), row("b", image="gone.png"), row("c", image="gone.png"), row("a")]
    report = run(write(folder, rows), folder, FakeProcessor(), accuracy=None)
    counts = dict(line.rsplit(None, 1) for line in report.summary().splitlines())
    assert {name.strip(): int(count) for name, count in counts.items()} == {
        "rows": 4,
        "usable": 1,
        "rejected": 3,
        "missing image": 2,
        "duplicate id": 1,
        "longest prompt, tokens": 30,
        "most image windows": 2,
    }
    assert CheckReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_of_an_animation_the_first_frame_is_used_and_the_check_says_so(folder):
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tiff"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
    rows = [row(name, image=name) for name in ("good.png", "moving.gif", "moving.webp", "moving.png", "pages.tiff")]
    report = run(write(folder, rows), folder, FakeProcessor(), accuracy=None)
    assert report.usable == [0, 1, 2, 3, 4] and [note.id for note in report.notes] == [line["id"] for line in rows[1:]]
    assert all(note.text.endswith(f"{note.id}: it has 3 frames or pages; the first is used") for note in report.notes)
    assert "note: first frame of several" in report.summary()
    assert CheckReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    for line in rows[1:]:
        red, green, blue = read_picture(ImageRef(path=folder / line["id"])).getpixel((5, 5))
        assert red > 240 and max(green, blue) < 20


def test_frames_that_cannot_be_counted_are_no_obstacle(folder):
    frames = [Image.effect_noise((40, 30), 50) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    whole = (folder / "moving.gif").read_bytes()
    for end in range(len(whole) // 2, len(whole), 97):
        (folder / "cut.gif").write_bytes(whole[:end])
        report = run(write(folder, [row("cut", image="cut.gif")]), folder, FakeProcessor(), accuracy=None)
        assert report.usable == [0], report.rejected


def test_headers_alone_find_bombs_but_not_truncation(folder):
    rows = [row("truncated", image="truncated.png"), row("bomb", image="bomb.png")]
    report = run(write(folder, rows), folder, decode_images=False, accuracy=None)
    assert report.usable == [0] and report.max_tokens == 0


def test_a_gold_answer_that_hangs_costs_its_time_limit(folder, monkeypatch):
    monkeypatch.setattr(check, "RewardConfig", lambda **options: RewardConfig(**options | {"time_limit": 1.0}))
    rows = [row("a", answer="9^{9^{9^{9}}}"), row("b", answer="5")]
    report = run(write(folder, rows), folder)
    assert report.usable == [1] and report.rejected[0].kind == "gold answer does not parse"


@pytest.fixture
def visits(monkeypatch) -> Counter:
    """Counts the rows that are really checked."""
    counter: Counter = Counter()
    original = check._check_image

    def counted(ref, problem_id, decode):
        counter[problem_id] += 1
        return original(ref, problem_id, decode)

    monkeypatch.setattr(check, "_check_image", counted)
    return counter


def test_the_second_check_is_read_from_the_cache(folder, visits):
    spec = write(folder, [row("a"), row("b", image="gone.png"), row("c", image="later.png")])
    first = run(spec, folder, FakeProcessor(), accuracy=None)
    assert run(spec, folder, FakeProcessor(), accuracy=None) == first
    assert visits == {"a": 1, "b": 1, "c": 1}
    # Other settings are another check.
    assert run(spec, folder, FakeProcessor(limit=1), accuracy=None).usable == []
    assert run(spec, folder, None, accuracy=None, decode_images=False).usable == [0]
    assert visits == {"a": 3, "b": 3, "c": 3}


def test_a_restored_or_changed_picture_is_noticed(folder, visits):
    spec = write(folder, [row("a"), row("c", image="later.png")])
    assert run(spec, folder, accuracy=None).usable == [0]
    (folder / "later.png").write_bytes(png())
    assert run(spec, folder, accuracy=None).usable == [0, 1]
    (folder / "good.png").write_text("spoilt")
    assert run(spec, folder, accuracy=None).usable == [1]


def test_changed_rows_are_noticed(folder):
    assert run(write(folder, [row("a")]), folder, accuracy=None).usable == [0]
    assert run(write(folder, [row("a", image="gone.png")]), folder, accuracy=None).usable == []


def test_a_cache_that_cannot_be_used_is_no_obstacle(folder, visits):
    spec = write(folder, [row("a")])
    report = run(spec, folder, accuracy=None)
    (entry,) = (folder / "cache" / "checks").iterdir()
    entry.write_text("{")
    assert run(spec, folder, accuracy=None) == report
    (folder / "file").write_text("")
    assert check_problems(open_problems(spec), None, accuracy=None, progress=False, cache_dir=folder / "file") == report
    assert visits == {"a": 3}


def test_columns_that_look_like_pictures_and_are_not_read_are_named(folder):
    rows = [row(f"{i}") | {"left_image": "good.png", "info": {"thumbnail": "good.png"}} for i in range(3)]
    report = run(write(folder, [*rows, row("plain")]), folder, accuracy=None)
    assert len(report.usable) == 4
    lines = {line.rsplit(None, 1)[0]: line.rsplit(None, 1)[1] for line in report.summary().splitlines()}
    assert lines["note: column 'left_image' looks like a picture, not read"] == "3"
    assert lines["note: column 'info.thumbnail' looks like a picture, not read"] == "3"


def test_deep_greyscale_is_noted(folder):
    Image.new("I;16", (40, 30), 30_000).save(folder / "deep.png")
    report = run(write(folder, [row("deep", image="deep.png"), row("plain")]), folder, accuracy=None)
    assert [(note.id, note.kind) for note in report.notes] == [("deep", "scaled to 8 bits")]


def test_no_file_hangs_or_ends_the_check(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    names = ["pipe.png", "folder.png", "loop.png", "zero.png", "x" * 300 + ".png", "nul\0.png", "good.png"]
    spec = write(folder, [row(name, image=name) for name in names])
    source = open_problems(spec, allow_outside_root=True)
    for _ in range(2):  # the second time from the cache
        report = check_problems(source, None, accuracy=None, progress=False, cache_dir=folder / "cache")
        assert report.usable == [6] and [rejected.row for rejected in report.rejected] == list(range(6))


def test_an_exception_that_nobody_expected_rejects_its_row_by_name(folder):
    report = run(write(folder, [row("odd"), row("good")]), folder, FaultyProcessor(), accuracy=None)
    assert report.usable == [1] and report.rejected[0].kind == "failed check"
    assert "p.jsonl:1: problem 'odd': cannot be checked (ZeroDivisionError: a fault)" in report.rejected[0].reason
