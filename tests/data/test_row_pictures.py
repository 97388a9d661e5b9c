"""Pictures are found under any obvious column, in order; what looks like one elsewhere is named."""

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from mmeureka_jax.data.pictures import read_picture
from mmeureka_jax.data.record import RowError
from mmeureka_jax.data.row_pictures import ImageFinder, find_pictures, is_absent, looks_like_picture
from mmeureka_jax.errors import UserError


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
BASE64 = base64.b64encode(PNG).decode()
STRUCT = {"bytes": PNG, "path": None}


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ({"image": "a.png"}, ["a.png"]),
        ({"images": ["a.png", "b.png"]}, ["a.png", "b.png"]),
        ({"image_2": "b.png", "image_10": "c.png", "image_1": "a.png", "image_3": None}, ["a.png", "b.png", "c.png"]),
        ({"image": "a.png", "image_2": "b.png"}, ["a.png", "b.png"]),
        ({"image1": "a.png", "image2": ["b.png", "c.png"]}, ["a.png", "b.png", "c.png"]),
        *(
            ({key: "a.png"}, ["a.png"])
            for key in (
                "img", "imgs", "picture", "pictures", "img_path", "image_file", "image_url", "image_urls", "imagePath",
                "imageURL", "imagepath", "image-path", "decoded_image", "image_bytes", "image_base64", "Image",
                "question_image", "question_images", "problem_image_path", "photo", "figure", "figures", "diagram_file",
                "visual", "screenshot_path", "pic", "image_name", "file_name", "raw_image", "input_image", "image_list",
            )
        ),
        ({"image": "no suffix"}, ["no suffix"]),  # read, and then missing, rather than passed over
        ({"image": "images/1.png", "decoded_image": STRUCT}, [STRUCT]),  # MathVista's
        ({"image_path": "a.png", "image": STRUCT}, [STRUCT]),
        ({"image": STRUCT, "images": [STRUCT, STRUCT]}, [STRUCT, STRUCT]),
        ({"image_source": "COCO/a.png", "image": "a.png"}, ["a.png"]),
        ({"figure": 3, "image": "a.png"}, ["a.png"]),
        ({"image": "a.png", "image_id": 7, "image_width": 40, "image_caption": "a cat", "num_images": 1}, ["a.png"]),
        ({"images": '["a.png", "b.png"]'}, ["a.png", "b.png"]),
        ({"images": np.array([PNG, PNG], object)}, [PNG, PNG]),  # TFDS's
        *(({"image": value}, []) for value in (None, float("nan"), "", [], [None], {"bytes": None, "path": None})),
    ],
)  # fmt: skip
def test_obvious_columns_are_read_in_order(row, values):
    assert find_pictures(row).values == values


@pytest.mark.parametrize(
    ("row", "unread", "misplaced"),
    [
        ({"image": "a.png", "left_image": "b.png"}, ["left_image"], ["left_image"]),
        ({"left_image": "a.png", "right_image": "b.png"}, ["left_image", "right_image"], ["left_image", "right_image"]),
        ({"media_files": ["a.jpg"], "attachment": "b.jpeg"}, ["attachment"], ["attachment"]),
        ({"stuff": PNG}, ["stuff"], ["stuff"]),
        ({"stuff": BASE64}, ["stuff"], ["stuff"]),
        ({"video": "a.mp4"}, ["video"], ["video"]),
        ({"image": "a.png", "decoded_image": STRUCT}, ["image"], []),
        ({"solution_image": "a.png", "thumbnail": STRUCT, "depth_map": "d.png"}, None, []),
        ({"info": {"image": "a.png", "more": {"images": [STRUCT]}}}, ["info.image", "info.more.images"], []),
        ({"info": [{"image": "a.png"}, {"image": BASE64}]}, ["info.image"], []),
        ({"info": '{"image": "a.png"}'}, ["info.image"], []),
        ({"note": "see a.png", "link": "https://example.org/a.png", "image_caption": "a cat", "audio": b"ID3"}, [], []),
    ],
)  # fmt: skip
def test_other_columns_that_look_like_pictures_are_named(row, unread, misplaced):
    found = find_pictures(row)
    assert list(found.unread) == (list(row) if unread is None else unread) and list(found.misplaced) == misplaced


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", b"", [], (), {}, {"bytes": None}, {"path": "", "bytes": b""}]
)
def test_cells_that_say_nothing(value):
    assert is_absent(value) and not looks_like_picture(value)


@pytest.fixture
def finder(tmp_path) -> ImageFinder:
    (tmp_path / "a.png").write_bytes(PNG)
    return ImageFinder(tmp_path, tmp_path.resolve(), allow_outside=False)


@pytest.mark.parametrize(
    "value",
    [
        "a.png",
        PNG,
        STRUCT,
        BASE64,
        "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;charset=x;base64,{BASE64}",
        "data:image/png;base64," + BASE64.replace("+", "%2B"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        {"bytes": BASE64, "path": None},
        {"url": f"data:image/png;base64,{BASE64}"},
        {"image_url": {"url": "a.png"}},
        {"path": "a.png", "bytes": None},
        {"src": "a.png"},
    ],
)
def test_values_that_hold_or_name_a_picture(finder, value):
    assert finder.find(value).read_bytes() == PNG


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://example.org/a.png", "nothing is downloaded"),
        ({"url": "http://example.org/a.png"}, "nothing is downloaded"),
        ("gs://bucket/a.png", "nothing is downloaded"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:nothing", "without a comma"),
        ("a\0.png", "null byte"),
        ("loop.png", "Symlink loop"),
        (7, "given as int"),
        (True, "given as bool"),
        ({"width": 3}, "given as an object with 'width'"),
    ],
)
def test_values_that_cannot_be_read_are_row_errors(finder, value, reason):
    (finder.root / "loop.png").symlink_to("loop.png")
    with pytest.raises(RowError, match=reason):
        finder.find(value)


def test_long_values_are_shortened_in_messages(finder):
    for value in ("x" * 50_000, "https://example.org/" + "x" * 50_000, "data:" + "x" * 50_000):
        with pytest.raises(UserError) as error:
            finder.find(value).read_bytes()
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device", "a socket"])
def test_only_regular_files_are_opened(tmp_path, kind):
    """Opening a named pipe would wait for ever."""
    import socket

    path = tmp_path / "a.png"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.path.relpath(path))
        server.close()
    ref = ImageFinder(tmp_path, tmp_path, allow_outside=True).find("a.png")
    with pytest.raises(UserError, match=f"it is {kind}, not a file"):
        ref.read_bytes()
    with pytest.raises(RowError, match=f"it is {kind}, not a file"):
        read_picture(ref)
