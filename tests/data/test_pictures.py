"""Pictures to patches, against transformers' image processor; files that cannot be used."""

import io
import json
import re
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmeureka_jax.data.pictures import PicturePreprocessor, picture_notes, picture_size, read_picture
from mmeureka_jax.data.record import ImageRef
from mmeureka_jax.data.vision_layout import VisionGeometry, window_layout
from mmeureka_jax.errors import UserError

GEOMETRY = VisionGeometry()
CONFIG = SimpleNamespace(vision=SimpleNamespace(patch_size=14, spatial_merge_size=2, window_size=112))


def noise(width, height, mode="RGB", seed=0):
    """A smooth random picture in any mode."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (7, 9, 4), dtype=np.uint8), "RGBA")
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if mode == "P":
        return image.convert("RGB").quantize(32)
    return image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else image.convert(mode)


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def write_settings(folder, name="preprocessor_config.json", **config):
    (folder / name).write_text(json.dumps({"image_processor_type": "Qwen2VLImageProcessor", **config}))
    return folder


def assert_equal_to_hf(preprocessor, hf_processor, data):
    """Patches of a file = HF's `pixel_values` in window order, one of the two equal frames; exactly."""
    ref = ImageRef(data=data)
    grid = preprocessor.grid(ref)
    expected = hf_processor(Image.open(io.BytesIO(data)))
    assert expected["image_grid_thw"].tolist() == [[1, *grid]]
    frames = np.asarray(expected["pixel_values"]).reshape(-1, 3, 2, 196)
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
    patches = preprocessor.patches(ref, grid).reshape(-1, 4, 588)
    layout = window_layout(grid, GEOMETRY)
    np.testing.assert_array_equal(patches[layout.image_index].reshape(-1, 588), frames[:, :, 0].reshape(-1, 588))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = write_settings(tmp_path_factory.mktemp("settings"), min_pixels=4 * 784, max_pixels=60 * 784)
    return PicturePreprocessor.from_checkpoint(folder, CONFIG), Qwen2VLImageProcessorPil.from_pretrained(folder)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(4, 700), seed=st.integers(0, 99))
def test_patches_are_hf_pixel_values_for_any_size(pair, width, height, seed):
    if max(width, height) > 200 * min(width, height):
        width = height
    assert_equal_to_hf(*pair, encoded(noise(width, height, seed=seed)))


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
        *((mode, "TIFF") for mode in ("L", "RGB", "CMYK", "YCbCr")),
        *((mode, "WEBP") for mode in ("RGB", "RGBA")),
        ("P", "GIF"),
        ("RGB", "BMP"),
        ("RGB", "PPM"),
    ],
)
def test_patches_are_hf_pixel_values_for_any_mode(pair, mode, file_format):
    assert_equal_to_hf(*pair, encoded(noise(97, 130, mode), file_format))


def test_transparent_colours_of_a_palette_become_white(pair):
    image = noise(90, 60, "P")
    assert_equal_to_hf(*pair, encoded(image, transparency=bytes([0, 128, 255])))
    assert_equal_to_hf(*pair, encoded(image, "GIF", transparency=3))
    clear = Image.new("RGBA", (60, 60), (10, 20, 30, 0))
    assert read_picture(ImageRef(data=encoded(clear))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({}, {}),
        ({"size": {"shortest_edge": 3136, "longest_edge": 50176}}, {}),
        ({"size": {"shortest_edge": 3136, "longest_edge": 50176}, "max_pixels": 90_000}, {}),
        ({"min_pixels": 200_000, "resample": 2}, {}),
        ({"image_mean": [0.5] * 3, "image_std": 0.25, "rescale_factor": 1 / 127.5}, {}),
        ({"do_normalize": False}, {}),
        ({"do_rescale": False}, {}),
        ({"max_pixels": 90_000}, {"min_pixels": 20_000, "max_pixels": 30_000}),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_settings_are_read_as_hf_reads_them(tmp_path, config, arguments, nested):
    if nested:
        write_settings(tmp_path, patch_size=99)  # the nested settings of the other file win
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    else:
        write_settings(tmp_path, **config)
        (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))
    preprocessor = PicturePreprocessor.from_checkpoint(tmp_path, CONFIG, **arguments)
    hf_processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path, **arguments)
    for size in ((40, 30), (500, 320)):
        assert_equal_to_hf(preprocessor, hf_processor, encoded(noise(*size)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_upright_as_hf_loads_them(tmp_path, file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture"
    path.write_bytes(encoded(noise(120, 50), file_format, exif=exif))
    assert_upright(path)


def assert_upright(path):
    expected = load_image(str(path))
    ref = ImageRef(path=path)
    assert picture_size(ref) == (expected.height, expected.width)
    np.testing.assert_array_equal(np.asarray(read_picture(ref)), np.asarray(expected))


def png_with_chunks(image, where, *chunks):
    """A PNG with chunks (name, data) right before its pixels or at its end."""
    data = encoded(image)
    at = data.index(b"IDAT" if where == "before" else b"IEND") - 4
    made = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return data[:at] + made + data[at:]


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", ["eXIf", "xmp", "comment"])
def test_png_metadata_counts_wherever_it_stands(tmp_path, where, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = {
        "eXIf": (b"eXIf", exif.tobytes()[6:]),
        "xmp": (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        "comment": (b"tEXt", b"Software\0Matplotlib"),
    }[kind]
    path = tmp_path / "picture.png"
    path.write_bytes(png_with_chunks(noise(120, 50), where, chunk))
    assert_upright(path)
    assert picture_size(ImageRef(path=path)) == ((50, 120) if kind == "comment" else (120, 50))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_sizes_come_from_headers_alone(monkeypatch, file_format):
    data = encoded(noise(120, 50), file_format)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert picture_size(ImageRef(data=data)) == (50, 120)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_cannot_be_used_is_an_error_with_its_file(tmp_path, pair, monkeypatch):
    preprocessor, _ = pair
    whole = encoded(noise(300, 300), "JPEG")

    def refused(name, content, message):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        ref = ImageRef(path=path)
        with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + message):
            preprocessor.patches(ref, preprocessor.grid(ref))

    refused("missing.png", None, "no such file")
    refused("text.png", b"hello", "not a readable picture")
    refused("empty.png", b"", "not a readable picture")
    refused("cut.jpg", whole[: len(whole) // 2], "truncated")
    refused("cut.png", encoded(noise(300, 300))[:2000], "truncated|not a readable picture")
    refused("ribbon.png", encoded(Image.new("L", (2010, 10))), "2010 x 10 pixels, differ by more than a factor of 200")
    # Pillow would hand this one to Ghostscript.
    refused("figure.eps", encoded(noise(30, 30), "EPS"), "not a readable picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused("large.png", encoded(Image.new("L", (40, 40))), "too large .*(40 x 40|1600) pixels")
    refused("bomb.png", encoded(Image.new("L", (400, 400))), "too large .*bomb")
    with pytest.raises(UserError, match="embedded image"):
        preprocessor.grid(ImageRef(data=b"nothing"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither preprocessor_config.json nor"),
        ({"preprocessor_config.json": "{"}, "preprocessor_config.json: cannot be read as JSON"),
        ({"preprocessor_config.json": "[]"}, "expected a JSON object"),
        ({"preprocessor_config.json": '{"patch_size": 16}'}, "patch_size is 16, but config.json's vision tower has 14"),
        ({"preprocessor_config.json": '{"do_resize": false}'}, "do_resize is false"),
        ({"preprocessor_config.json": '{"min_pixels": 9, "max_pixels": 8}'}, "min_pixels is 9 and max_pixels 8"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        PicturePreprocessor.from_checkpoint(tmp_path, CONFIG)


# Greyscale of more than 8 bits.


def grey(*values: float, kind=np.float32, file_format="TIFF") -> ImageRef:
    return ImageRef(data=encoded(Image.fromarray(np.array([values], kind)), file_format))


@pytest.mark.parametrize(
    ("ref", "levels"),
    [
        (grey(0, 257, 32896, 65535, kind=np.uint16), [0, 1, 128, 255]),
        (grey(0, 257, 32896, 65535, kind=np.uint16, file_format="PNG"), [0, 1, 128, 255]),
        (grey(0, 257, 32896, 65535, kind=np.uint16, file_format="PPM"), [0, 1, 128, 255]),
        (grey(0, 1, 200, 255, kind=np.uint16), [0, 0, 1, 1]),
        (grey(0, 1, 200, 255, kind=np.int32), [0, 1, 200, 255]),
        (grey(0, 257, 32896, 65535, kind=np.int32), [0, 1, 128, 255]),
        (grey(0, 0.5, 1), [0, 128, 255]),
        (grey(0, 1, 128, 255), [0, 1, 128, 255]),
        (grey(0, 0, 0), [0, 0, 0]),
    ],
)
def test_deep_greyscale_is_scaled_to_8_bits(ref, levels):
    picture = read_picture(ref)
    assert picture.mode == "RGB" and np.asarray(picture)[0].tolist() == [[level] * 3 for level in levels]
    ((kind, text),) = picture_notes(ref)
    assert kind == "scaled to 8 bits" and "greyscale of more than 8 bits" in text


@pytest.mark.parametrize(
    "ref",
    [
        *(grey(0, value) for value in (-1, 1000, np.nan, np.inf)),
        *(grey(0, value, kind=np.int32) for value in (-1, 70000)),
    ],
)
def test_deep_greyscale_of_no_known_scale_is_refused(ref):
    with pytest.raises(UserError, match="its values go from .*; expected 0 to"):
        read_picture(ref)
