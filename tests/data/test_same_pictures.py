"""The pictures of a problem are the same ones, pixel by pixel, in training, `data show`, the report and TensorBoard."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
from helpers.commands import mmeureka, write_rows
from PIL import Image

from mmeureka_jax.config.schema import TrackingConfig
from mmeureka_jax.data.pictures import PicturePreprocessor, read_picture
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.data.record import ImageRef
from mmeureka_jax.data.vision_layout import VisionGeometry, window_layout
from mmeureka_jax.report.page import write_report
from mmeureka_jax.report.thumbnails import THUMBNAIL_SIDE
from mmeureka_jax.runs.rollout_samples import RolloutSample
from mmeureka_jax.runs.tracking import MAX_LOGGED_SIDE, Tracker

GEOMETRY = VisionGeometry()
# neither training nor the pages resize it
WIDTH = 84
HEIGHT = 56


def drawn() -> Image.Image:
    """A picture whose lower half is transparent black."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[: HEIGHT // 2] = (200, 30, 60, 255)
    pixels[: HEIGHT // 2, : WIDTH // 2] = (20, 130, 60, 255)
    return Image.fromarray(pixels)


def grey(scale: float, kind: type) -> Image.Image:
    """From black to `scale`."""
    ramp = np.linspace(0, 1, WIDTH)[None] * np.ones((HEIGHT, 1))
    return Image.fromarray((ramp * scale).astype(kind))


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def turned(file_format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(drawn().convert("RGB").rotate(90, expand=True), file_format, exif=exif, quality=100)


PALETTE = drawn().convert("RGB").quantize(8)
CLEAR = PALETTE.getpixel((5, HEIGHT - 5))  # its colour in the lower half
KINDS = {
    "RGB": encoded(drawn().convert("RGB")),
    "RGBA": encoded(drawn()),
    "grey and alpha": encoded(drawn().convert("LA")),
    "palette": encoded(PALETTE, transparency=CLEAR),
    "palette with several alphas": encoded(PALETTE, transparency=bytes([0 if i == CLEAR else 128 for i in range(8)])),
    "GIF": encoded(PALETTE, "GIF", transparency=CLEAR),
    "WEBP": encoded(drawn(), "WEBP", lossless=True),
    "CMYK": encoded(drawn().convert("RGB").convert("CMYK"), "TIFF"),
    "16 bits": encoded(grey(65535, np.uint16)),
    "16 bits, one of them transparent": encoded(grey(65535, np.uint16), transparency=0),
    "16-bit TIFF": encoded(grey(65535, np.uint16), "TIFF"),
    "16-bit PGM": encoded(grey(65535, np.uint16), "PPM"),
    "32-bit integers": encoded(grey(65535, np.int32), "TIFF"),
    "floats to 1": encoded(grey(1, np.float32), "TIFF"),
    "floats to 255": encoded(grey(255, np.float32), "TIFF"),
    "turned JPEG": turned("JPEG"),
    "turned PNG": turned("PNG"),
    "with a colour profile": encoded(drawn().convert("RGB"), icc_profile=b"a profile"),
}


def trained_on(ref: ImageRef) -> np.ndarray:
    """The pixels in the patches, put together again."""
    preprocessor = PicturePreprocessor(
        GEOMETRY, 1, WIDTH * HEIGHT, 3, np.tile(np.arange(256, dtype=np.float32), (3, 1))
    )
    grid = preprocessor.grid(ref)
    units = preprocessor.patches(ref, grid).reshape(-1, 4, 588)[window_layout(grid, GEOMETRY).image_index]
    units = units.reshape(grid[0] // 2, grid[1] // 2, 2, 2, 3, 14, 14)
    return units.transpose(0, 2, 5, 1, 3, 6, 4).reshape(grid[0] * 14, grid[1] * 14, 3).astype(np.uint8)


def pictures_of(page: Path) -> list[Image.Image]:
    sources = re.findall(r"src=\"data:image/\w+;base64,([^\"]+)\"", page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]


def shown(data: Path, folder: Path) -> list[Image.Image]:
    assert mmeureka("data", "show", data, "--rows", "0:", "--output", folder / "page.html") == 0
    return pictures_of(folder / "page.html")


def reported(pictures: list[bytes], run_dir: Path) -> tuple[list[Image.Image], list[Image.Image]]:
    """The pictures of a run's report, and those in its folder, which TensorBoard's file has as they are."""
    tracker = Tracker(run_dir, TrackingConfig())
    tracker.log_metrics(1, {"loss/total": 1.0})
    tracker.log_rollouts(1, [RolloutSample("p", "?", pictures, "3", [])])
    tracker.close()
    (line,) = (run_dir / "rollouts" / "step_00000001.jsonl").read_text().splitlines()
    stored = [(run_dir / "rollouts" / name).read_bytes() for name in json.loads(line)["images"]]
    events = b"".join(path.read_bytes() for path in (run_dir / "tensorboard").iterdir())
    assert all(png in events for png in stored)
    return pictures_of(write_report(run_dir)), [Image.open(io.BytesIO(png)) for png in stored]


def test_every_kind_of_picture_is_the_same_everywhere(tmp_path):
    names = list(KINDS)
    for number, name in enumerate(names):
        (tmp_path / f"{number}.png").write_bytes(KINDS[name])
    rows = [{"id": name, "question": "?", "answer": "3", "image": f"{i}.png"} for i, name in enumerate(names)]
    data = write_rows(tmp_path / "p.jsonl", rows)
    source = open_problems(str(data))
    on_page = shown(data, tmp_path)
    in_report, in_events = reported([problem.images[0].read_bytes() for problem in source], tmp_path / "run")
    assert len(on_page) == len(in_report) == len(in_events) == len(names)
    for problem, *others in zip(source, on_page, in_report, in_events, strict=True):
        expected = trained_on(problem.images[0])
        for other in others:
            assert other.mode == "RGB" and not {"exif", "icc_profile", "transparency"} & set(other.info), problem.id
            np.testing.assert_array_equal(np.asarray(other), expected, err_msg=problem.id)


def test_transparency_is_white_and_deep_grey_keeps_its_shades():
    for name in ("RGBA", "grey and alpha", "palette with several alphas", "GIF", "WEBP"):
        assert read_picture(ImageRef(data=KINDS[name])).getpixel((5, HEIGHT - 5)) == (255,) * 3, name
    ramp = np.rint(np.linspace(0, 255, WIDTH))
    for name in ("16 bits", "16-bit TIFF", "16-bit PGM", "32-bit integers", "floats to 1", "floats to 255"):
        np.testing.assert_allclose(np.asarray(read_picture(ImageRef(data=KINDS[name])))[0, :, 0], ramp, atol=1)


def test_pictures_that_were_stored_with_transparency_are_shown_white(tmp_path):
    reported([KINDS["RGB"]], tmp_path)
    (stored,) = (tmp_path / "rollouts" / "images").iterdir()
    stored.write_bytes(KINDS["RGBA"])
    (picture,) = pictures_of(write_report(tmp_path))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(read_picture(ImageRef(data=KINDS["RGBA"]))))


def test_pictures_that_pages_make_smaller_look_the_same(tmp_path):
    rows = []
    for number, (width, height) in enumerate([(1500, 900), (300, 1100), (640, 640)]):
        x = np.linspace(0, 1, width)
        y = np.linspace(0, 1, height)[:, None]
        waves = np.stack([np.sin(9 * x + 5 * y), np.cos(4 * x * y), np.sin(7 * y - 2 * x)], axis=-1)
        Image.fromarray((127 + 127 * waves).astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"id": str(number), "question": "?", "answer": "3", "image": f"{number}.png"})
    data = write_rows(tmp_path / "p.jsonl", rows)
    source = open_problems(str(data))
    on_pages = shown(data, tmp_path)
    in_report, in_events = reported([problem.images[0].read_bytes() for problem in source], tmp_path / "run")
    for problem, on_page, of_report, of_events in zip(source, on_pages, in_report, in_events, strict=True):
        picture = read_picture(problem.images[0])  # what training resizes and cuts
        for other, side, tolerance in (
            (of_events, MAX_LOGGED_SIDE, 0),
            (on_page, 480, 0),
            (of_report, THUMBNAIL_SIDE, 4),  # some of them in JPEG
        ):
            expected = picture.copy()
            expected.thumbnail((side, side))
            difference = np.abs(np.asarray(other, int) - np.asarray(expected, int))
            assert difference.mean() <= tolerance, (problem.id, side)
