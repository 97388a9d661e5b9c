"""Every form of rows becomes the Problem that it describes; what does not is an error that names its place."""

import codecs
import datetime
import io
import json
import pickle
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmeureka_jax.data import problems
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.data.record import ImageRef, Problem, RowError
from mmeureka_jax.errors import UserError


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (shade, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png and b.png below `images/`."""
    (tmp_path / "images").mkdir()
    for shade, name in enumerate("ab"):
        (tmp_path / "images" / f"{name}.png").write_bytes(png(shade))
    return tmp_path


def write_jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def user(*parts) -> tuple[dict, ...]:
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return ({"role": "user", "content": content},)


def the_only(spec: str, **options) -> Problem:
    source = open_problems(spec, **options)
    assert len(source) == 1
    return source[0]


def test_mm_eureka_qwen_form(pictures):
    parts = [{"type": "image", "image": f"file://{pictures}/images/a.png"}, {"type": "text", "text": "What <image>?"}]
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": parts}]
    row = {"id": 7, "message": json.dumps(chat), "answer": "12", "source": "K12"}
    problem = the_only(write_jsonl(pictures / "p.jsonl", [row]))
    system = {"role": "system", "content": [{"type": "text", "text": "Think."}]}
    # With as many markers as image parts, the markers are the pictures' places.
    assert problem.messages == (system, *user("What ", None, "?"))
    assert problem.images == (ImageRef(pictures / "images" / "a.png"),)
    assert (problem.id, problem.answer, problem.metadata) == ("7", "12", {"source": "K12"})
    assert problem.question == "What ?"


def test_mm_eureka_internvl_form(pictures):
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Compare <image> with <image>."}]
    urls = [f"file://{pictures}/images/{name}.png" for name in "ba"]
    rows = [
        {"id": "1", "conversations": chat, "answer": "A", "image_urls": urls},
        {"id": "2", "conversations": chat[:1] + [{"role": "user", "content": "1 + 1?"}], "answer": "2"},
    ]
    source = open_problems(write_jsonl(pictures / "p.jsonl", rows))
    assert source[0].messages[1:] == user("Compare ", None, " with ", None, ".")
    assert [ref.path.name for ref in source[0].images] == ["b.png", "a.png"]
    assert source[1].messages[1:] == user("1 + 1?") and source[1].images == ()


def test_mmk12_parquet(tmp_path):
    rows = [
        {"id": "a", "question": "Area?", "answer": "4", "subject": "math", "image": {"bytes": png(1), "path": "x"}},
        {"id": "b", "question": "1 + 1?", "answer": "2", "subject": "math", "image": None},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "mmk12.parquet")
    source = open_problems(str(tmp_path / "mmk12.parquet"))
    assert source[0] == Problem("a", user(None, "Area?"), (ImageRef(data=png(1)),), "4", {"subject": "math"})
    assert source[1] == Problem("b", user("1 + 1?"), (), "2", {"subject": "math"})


def test_geometry3k_parquet_with_made_ids(tmp_path):
    rows = [
        {"images": [{"bytes": png(i), "path": None}], "problem": f"<image>Find x, case {i}.", "answer": f"{i}"}
        for i in range(3)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=2)
    source = open_problems(str(tmp_path / "train.parquet"))
    assert source[2] == Problem("train-2", user(None, "Find x, case 2."), (ImageRef(data=png(2)),), "2", {})
    assert [source[i].id for i in range(3)] == ["train-0", "train-1", "train-2"]


def test_verl_parquet(tmp_path):
    row = {
        "data_source": "geo",
        "prompt": [{"role": "user", "content": "<image>Find x."}],
        "images": [{"bytes": png(), "path": None}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 4, "split": "train"},
    }
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "verl.parquet")
    problem = the_only(str(tmp_path / "verl.parquet"))
    assert problem.messages == user(None, "Find x.") and problem.answer == "3"
    assert problem.metadata == {"data_source": "geo", "ability": "math", "extra_info": {"index": 4, "split": "train"}}


def test_k12_json_list(pictures):
    rows = [{"id": "a", "question": "Area?", "answer": 3, "image_path": "images/a.png"}]
    (pictures / "k12.json").write_text(json.dumps(rows))
    problem = the_only(str(pictures / "k12.json"))
    assert problem == Problem("a", user(None, "Area?"), (ImageRef(pictures / "images" / "a.png"),), "3", {})


def test_gsm8k_rows(tmp_path):
    """The gold answer is what the solution's last line says."""
    solutions = ["48/2 = <<48/2=24>>24 clips.\n48+24 = <<48+24=72>>72 in all.\n#### 72", "#### 3\n#### 1,450 "]
    answers = ["72", "1,450"]
    others = ["#### 7", "a\n#### 7\nb", "7"]  # not of that form: left as they are
    rows = [{"question": "How many?", "answer": answer} for answer in solutions + others]
    source = open_problems(write_jsonl(tmp_path / "train.jsonl", rows))
    assert [source[row].answer for row in range(len(rows))] == answers + others
    assert source[1] == Problem("train-1", user("How many?"), (), "1,450", {"solution": solutions[1]})
    assert source[2] == Problem("train-2", user("How many?"), (), "#### 7", {})


def test_chat_rows_of_the_sample_command(pictures):
    content = [
        {"type": "text", "text": "Compare"},
        *({"type": "image", "image": f"images/{name}.png"} for name in "ab"),
    ]
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": content}], "response": "They differ."},
        {"id": "b", "messages": [{"role": "user", "content": "hello"}]},
    ]
    spec = write_jsonl(pictures / "in.jsonl", rows)
    source = open_problems(spec, require_answer=False)
    assert source[0].messages == user("Compare", None, None) and source[0].answer is None
    assert source[0].metadata["response"] == "They differ."
    assert [ref.read_bytes() for ref in source[0].images] == [png(0), png(1)]
    assert source[1].messages == user("hello")
    with pytest.raises(RowError, match=r"in\.jsonl:1: problem 'a': no answer"):
        open_problems(spec)[0]


def test_metadata_is_json_able_and_holds_what_is_not_used(tmp_path):
    row = {"id": "a", "question": "q", "answer": "1", "solution": "s", "thumb": b"\xff", "metadata": '{"kind": "dots"}'}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    metadata = the_only(str(tmp_path / "p.parquet")).metadata
    assert json.loads(json.dumps(metadata)) == {"solution": "s", "kind": "dots"}


@given(
    st.lists(st.sampled_from(["<image>", "x", " ", "<imag", "e>", "é\n"]), max_size=12).map(
        lambda pieces: "?" + "".join(pieces)
    )
)
def test_markers_split_texts_without_losing_a_character(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("markers")
    (folder / "a.png").write_bytes(png())
    count = text.count("<image>")
    chat = [{"role": "user", "content": text}]
    spec = write_jsonl(folder / "p.jsonl", [{"id": "a", "conversations": chat, "image_urls": ["a.png"] * count}])
    content = the_only(spec, require_answer=False).messages[0]["content"]
    assert "".join("<image>" if part["type"] == "image" else part["text"] for part in content) == text
    assert all(part["type"] == "image" or "<image>" not in part["text"] for part in content)


# Rows that cannot be used.


def bad_row(**changes) -> dict:
    return {"id": "bad", "messages": [{"role": "user", "content": "hello"}], "answer": "1"} | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": ""}, "no answer"),
        ({"answer": ["1", "2"]}, "answer is of type list"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "user"}]}, "no 'content'"),
        ({"messages": "not json"}, "the chat is text that is not valid JSON"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "role 'robot'; expected one of system"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "the last message must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "content part of type 'video'"),
        ({"messages": [{"role": "user", "content": "<image> and <image>"}], "images": ["images/a.png"]}, "2 place"),
        ({"messages": [{"role": "user", "content": "<image>"}]}, r"1 place\(s\) for images in the text but 0 image"),
        ({"images": ["http://example.org/a.png"]}, "only files are read"),
        ({"images": [3]}, "an image is given as int"),
        ({"images": ["../secret.png"]}, "outside the data root"),
        ({"images": ["file:///etc/passwd"]}, "outside the data root"),
    ],
)
def test_unusable_rows_name_file_line_and_id(pictures, changes, reason):
    spec = write_jsonl(pictures / "p.jsonl", [bad_row(id="good"), bad_row(**changes)])
    source = open_problems(spec)
    assert source[0].id == "good"
    with pytest.raises(RowError, match=reason) as error:
        source[1]
    assert f"{pictures}/p.jsonl:2: problem 'bad'" in str(error.value)
    assert error.value.problem_id == "bad"
    again = pickle.loads(pickle.dumps(error.value))  # as it comes out of a data worker
    assert (str(again), again.kind, again.problem_id) == (str(error.value), error.value.kind, "bad")


@pytest.mark.parametrize("line", ['{"id": ', "[1, 2]", '{"id": "bad"} {', "[" * 100_000])
def test_malformed_json_names_file_and_line(tmp_path, line):
    (tmp_path / "p.jsonl").write_text(json.dumps(bad_row()) + "\n\n" + line + "\n")
    source = open_problems(str(tmp_path / "p.jsonl"))
    with pytest.raises(RowError, match=r"p\.jsonl:3: (not valid JSON|expected a JSON object)"):
        source[1]


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(json.dumps(bad_row()).encode() + b'\n{"id": "\xff\xfe"}\n')
    with pytest.raises(RowError, match=r"p\.jsonl:2: not valid JSON"):
        open_problems(str(tmp_path / "p.jsonl"))[1]


def test_malformed_json_list(tmp_path):
    (tmp_path / "p.json").write_text('[\n{"id": 1},\n{"id" 2}\n]')
    with pytest.raises(UserError, match=r"p\.json:3: not valid JSON"):
        open_problems(str(tmp_path / "p.json"))


# One bad row never ends the command.


GOOD = {"id": "good", "question": "How many?", "answer": "3"}
NINES = "9" * 5000  # digits that Python does not read


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(GOOD | {"id": "\ud800"}), "in its id, half a character"),
        (json.dumps(GOOD | {"question": "a \udc00?"}), "in its messages, half a character"),
        (json.dumps(GOOD | {"answer": "\ud800"}), "in its answer, half a character"),
        (json.dumps(GOOD | {"note": {"\ud800": 1}}), "in its metadata, half a character"),
        (json.dumps(GOOD | {"image": "\ud800.png"}), "neither the path of a file"),
        (json.dumps(GOOD)[:-1] + f', "note": {"[" * 500}{"]" * 500}}}', "more than 64 levels deep"),
        (json.dumps(GOOD)[:-1] + f', "image": {"[" * 900}{"]" * 900}}}', "is given as list"),
        ('{"messages": ' + "[" * 900 + "]" * 900 + "}", "a message is of type list"),
        (json.dumps(GOOD)[:-1] + f', "note": {"[" * 5000}{"]" * 5000}}}', "not valid JSON"),
        ('{"question": "Q", "answer": ' + NINES + "}", "not valid JSON"),
        ('{"nothing": 1}', "keys nothing fit no known form"),
        (json.dumps(GOOD)[:-1] + ', "answer": "4"}', "has the key 'answer' twice"),
        (json.dumps(GOOD)[:-1] + ', "note": {"a": 1, "a": 2}}', "has the key 'a' twice"),
        ("[]", "expected a JSON object"),
        ("{", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("form", ["lines", "list"])
def test_a_bad_row_does_not_keep_others_from_being_read(tmp_path, form, line, reason):
    lines = [line, json.dumps(GOOD)]  # the bad one first: nothing about the others is taken from it
    if form == "list" and line == "{":
        return  # where the list continues after it is unknown
    name, text = ("p.jsonl", "\n".join(lines)) if form == "lines" else ("p.json", f"[{', '.join(lines)}]")
    (tmp_path / name).write_text(text)
    source = open_problems(str(tmp_path / name))
    assert len(source) == 2 and source[1].answer == "3"
    with pytest.raises(RowError, match=reason) as error:
        source[0]
    assert "p.json" in str(error.value)
    str(error.value).encode()


def test_an_exception_that_nobody_expected_keeps_its_name(tmp_path, monkeypatch):
    """So that a fault of this program does not look like bad rows."""
    monkeypatch.setattr(problems, "take_apart", lambda *args, **options: {}["a fault"])
    with pytest.raises(RowError, match=r"p\.jsonl:1: problem 'good': cannot be read \(KeyError: 'a fault'\)"):
        open_problems(write_jsonl(tmp_path / "p.jsonl", [GOOD]))[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", "as lines.json"])
def test_files_are_read_in_any_encoding_of_json(tmp_path, suffix, encoding):
    rows = [
        GOOD | {"id": f"{i}", "question": text} for i, text in enumerate(["Größe?", "日本 🙂?", "\u0a0a\u0d0d\u2028?"])
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = f"[{','.join(lines)}]" if suffix == ".json" else "\r\n\n".join(lines)
    (tmp_path / f"p{suffix}").write_bytes(text.encode(encoding))
    source = open_problems(str(tmp_path / f"p{suffix}"))
    assert [problem.question for problem in source] == [row["question"] for row in rows]
    with pytest.raises(IndexError):
        source[3]


def test_a_broken_line_of_utf_16_is_one_bad_row(tmp_path):
    good = (json.dumps(GOOD) + "\n").encode("utf-16-le")
    (tmp_path / "p.jsonl").write_bytes(codecs.BOM_UTF16_LE + good + b"\x00\xd8\n\0" + good + b"x")
    source = open_problems(str(tmp_path / "p.jsonl"))
    assert source[0] == source[2]
    for row, line in ((1, 2), (3, 4)):
        with pytest.raises(RowError, match=rf"p\.jsonl:{line}: not valid JSON"):
            source[row]


def test_bytes_that_are_not_text_in_a_list_cost_one_row(tmp_path):
    (tmp_path / "p.json").write_bytes(b'[{"question": "a\xff", "answer": "3"}, ' + json.dumps(GOOD).encode() + b"]")
    source = open_problems(str(tmp_path / "p.json"))
    assert source[1].id == "good"
    with pytest.raises(RowError, match=r"p\.json item 0: .*half a character"):
        source[0]


def test_numbers_of_parquet_are_as_they_were_written(tmp_path):
    table = {
        "question": ["Q"] * 2,
        "answer": pa.array([0.1, 2e-5], pa.float32()),
        "half": pa.array([0.1, None], pa.float16()),
        "when": pa.array([datetime.date(2024, 1, 2), None]),
    }
    parquet.write_table(pa.table(table), tmp_path / "f.parquet")
    parquet.write_table(pa.table({"question": ["Q"], "answer": [Decimal("3.00")]}), tmp_path / "d.parquet")
    source = open_problems(str(tmp_path / "f.parquet"))
    assert [problem.answer for problem in source] == ["0.1", "2e-05"]
    assert [problem.metadata for problem in source] == [
        {"half": 0.1, "when": "2024-01-02"},
        {"half": None, "when": None},
    ]
    assert the_only(str(tmp_path / "d.parquet")).answer == "3.00"


def test_unknown_form_lists_the_known_ones(tmp_path):
    with pytest.raises(
        UserError, match=r"p\.jsonl:1: keys text, label fit no known form.*(.|\n)*MMK12(.|\n)*geometry3k"
    ):
        open_problems(write_jsonl(tmp_path / "p.jsonl", [{"text": "a", "label": 1}]))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("nowhere.jsonl", "no such file"),
        ("empty.jsonl", "no rows"),
        ("notes.txt", "expected a file that ends with .jsonl"),
        ("broken.parquet", "not a readable Parquet file"),
        ("twice.parquet", "the column 'answer' twice"),
        ("cut.json", "no end of its first row"),
        ("tfds:nothing_here@train", "not found in"),
        ("tfds:nothing_here", "expected tfds:NAME"),
    ],
)
def test_specs_that_name_nothing_usable(tmp_path, monkeypatch, spec, reason):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "cut.json").write_text("[" * 100_000)
    names = ["question", "answer", "answer"]
    parquet.write_table(pa.Table.from_arrays([pa.array([name]) for name in names], names), "twice.parquet")
    with pytest.raises(UserError, match=reason):
        open_problems(spec)


# Image paths.


def test_images_outside_the_root_are_refused_unless_allowed(pictures):
    data = pictures / "data"
    data.mkdir()
    (data / "link.png").symlink_to(pictures / "images" / "a.png")
    for name in ("../images/a.png", "link.png", str(pictures / "images" / "a.png")):
        spec = write_jsonl(data / "p.jsonl", [bad_row(images=[name])])
        with pytest.raises(RowError, match="outside the data root") as error:
            open_problems(spec)[0]
        assert error.value.kind == "image outside the root"
        assert the_only(spec, allow_outside_root=True).images[0].read_bytes() == png(0)


def test_root_is_what_relative_paths_start_from(pictures):
    (pictures / "data").mkdir()
    spec = write_jsonl(pictures / "data" / "p.jsonl", [bad_row(images=["images/b.png"])])
    assert the_only(spec, root=str(pictures)).images[0].read_bytes() == png(1)
    with pytest.raises(UserError, match="no such folder"):
        open_problems(spec, root=str(pictures / "nowhere"))


@pytest.mark.parametrize(
    "url", ["file://{}/two%20words.png", "file://{}/two words.png", "file://localhost{}/two words.png"]
)
def test_file_urls(tmp_path, url):
    (tmp_path / "two words.png").write_bytes(png(5))
    problem = the_only(write_jsonl(tmp_path / "p.jsonl", [bad_row(images=[url.format(tmp_path)])]))
    assert problem.images[0].read_bytes() == png(5)


def test_a_missing_picture_is_named_when_it_is_read(tmp_path):
    problem = the_only(write_jsonl(tmp_path / "p.jsonl", [bad_row(images=["gone.png"])]))
    with pytest.raises(UserError, match=r"gone\.png: cannot be read \(No such file"):
        problem.images[0].read_bytes()


def test_jsonl_rows_are_read_at_their_offsets(tmp_path):
    texts = ["ascii", "ünïcödé", "日本語", "line\nbreak", ""]
    lines = [json.dumps(bad_row(id=str(i), note=text), ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    (tmp_path / "p.jsonl").write_text("\n" + "\r\n \n".join(lines), encoding="utf-8", newline="")
    source = open_problems(str(tmp_path / "p.jsonl"))
    assert [source[i].metadata["note"] for i in reversed(range(len(source)))] == texts[::-1]


def test_json_files_may_hold_json_lines(tmp_path):
    write_jsonl(tmp_path / "p.json", [bad_row(id="a"), bad_row(id="b")])
    assert [problem.id for problem in open_problems(str(tmp_path / "p.json"))] == ["a", "b"]


def test_fingerprint_follows_the_rows(tmp_path):
    spec = write_jsonl(tmp_path / "p.jsonl", [bad_row()])
    before = open_problems(spec).fingerprint()
    assert open_problems(spec).fingerprint() == before
    write_jsonl(tmp_path / "p.jsonl", [bad_row(answer="2")])
    assert open_problems(spec).fingerprint() != before
