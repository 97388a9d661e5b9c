"""`mmeureka data` prints what it found, writes whole files, and its exit code says whether anything can be used."""

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from mmeureka_jax.commands.data import add_parser
from mmeureka_jax.data import check
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.errors import UserError


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (40, 30), (250, 0, 0)).save(tmp_path / "a.png")
    rows = [
        {"id": "one", "question": "How many <b>?", "answer": "4", "image_path": "a.png", "subject": "math"},
        {"id": "two", "question": "2?", "answer": "4", "image_path": "gone.png"},
        {"id": "three", "question": "3?", "answer": "$\\frac{1}{2}$"},
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    return tmp_path / "p.json"


def mmeureka(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *map(str, arguments)])
    return args.run(args)


def test_check_names_the_rejected_and_writes_the_report(data, tmp_path, capsys):
    assert mmeureka("check", data, "--json", tmp_path / "report.json") == 0
    printed = capsys.readouterr().out
    assert "row 1: missing image: problem 'two'" in printed and str(tmp_path / "gone.png") in printed
    assert json.loads((tmp_path / "report.json").read_text())["usable"] == [0, 2]


def test_check_without_a_usable_row_exits_with_2(data, tmp_path, capsys):
    data.write_text(json.dumps([{"id": "one", "question": "?"}]))
    assert mmeureka("check", data) == 2
    assert "no answer" in capsys.readouterr().out


def test_show_prints_rows(data, capsys):
    assert mmeureka("show", data) == 0
    printed = capsys.readouterr().out
    assert "row 0: one\n  user: [a.png, 40 x 30]How many <b>?\n  answer: 4\n  subject: math" in printed
    assert "gone.png: no such file" in printed and "row 2: three" in printed
    assert mmeureka("show", data, "--rows", "2") == 0
    assert capsys.readouterr().out.startswith("row 2: three")


def test_show_writes_a_page_with_pictures_and_no_live_markup(data, tmp_path):
    assert mmeureka("show", data, "--output", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "How many &lt;b&gt;?" in page and "<b>?" not in page
    assert page.count('src="data:image/png;base64,') == 1 and "gone.png" in page


@pytest.mark.parametrize("rows", ["x", "5:9", "-1", "2:1"])
def test_rows_that_do_not_exist(data, rows):
    with pytest.raises(UserError, match="--rows"):
        mmeureka("show", data, f"--rows={rows}")


def test_build_prints_how_to_name_the_data(data, tmp_path, monkeypatch, capsys):
    assert mmeureka("build", data, "--name", "mine", "--output", tmp_path / "tfds", "--skip-unusable") == 0
    printed = capsys.readouterr().out
    assert "left out: " in printed and "'two'" in printed and "tfds:mine@train" in printed
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert [problem.id for problem in open_problems("tfds:mine@train")] == ["one", "three"]


def test_notes_of_one_kind_are_printed_a_few_times(data, monkeypatch, capsys):
    monkeypatch.setattr(check, "_check_golds", lambda *args: None)
    rows = [{"id": f"{i}", "question": "?", "answer": "4", "image": "a.png", "left_image": "a.png"} for i in range(20)]
    data.write_text(json.dumps(rows))
    assert mmeureka("check", data) == 0
    printed = capsys.readouterr().out
    assert printed.count("column 'left_image' looks like a picture and is not read") == 5
    assert "note: column 'left_image' looks like a picture, not read       20" in printed
