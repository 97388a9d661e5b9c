"""InternVL's tiles and prompts, against transformers and against the model cards' preprocessing."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.internvl_models import MEAN, MOST, STD, TILE, Form, image_processor, write_checkpoint
from helpers.support import WithoutVideo, picture, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from mmeureka_jax.data.processor import Processor
from mmeureka_jax.data.record import ImageRef
from mmeureka_jax.data.tiles import TileGeometry, tile_grid
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import added_tokens
from mmeureka_jax.models.internvl_config import SYSTEM_MESSAGE

SIZES = [(90, 100), (300, 100), (113, 250), (64, 64), (1, 150), (500, 500), (448, 449)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, form in {"native": Form(False, "qwen2"), "original": Form(True, "internlm2")}.items():
        found[name] = tmp_path_factory.mktemp(name)
        write_checkpoint(found[name], form)
    return found


def open_processor(folder, **options):
    return Processor.from_checkpoint(folder, prompt_style="plain", max_prompt_tokens=4096, **options)


class HFProcessor(WithoutVideo, InternVLProcessor):
    pass


def as_pixels(patches):
    """Patches in our order [w, S, C] as pictures [w, 3, side, side]."""
    units = TILE // 28
    x = patches.reshape(len(patches), units, units, 2, 2, 3, 14, 14)
    return x.transpose(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(patches), 3, TILE, TILE)


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 3000), width=st.integers(1, 3000), tile=st.sampled_from([112, 224, 448]),
    fewest=st.integers(1, 4), most=st.integers(4, 12),
)  # fmt: skip
def test_grids_are_those_of_transformers(height, width, tile, fewest, most):
    columns, rows = get_optimal_tiled_canvas((height, width), (tile, tile), fewest, most)
    assert tile_grid(height, width, tile, fewest, most) == (rows, columns)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_transformers(folders, size):
    ref = picture(*size)
    pictures = open_processor(folders["native"]).pictures
    grid = pictures.grid(ref)
    expected = image_processor()(images=[Image.open(io.BytesIO(ref.data))], return_tensors="np")
    assert pictures.geometry.num_windows(grid) == expected["num_patches"][0]
    np.testing.assert_array_equal(as_pixels(pictures.patches(ref, grid)), expected["pixel_values"])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pixels_equal_transformers_for_any_mode(folders, mode):
    image = Image.open(io.BytesIO(picture(130, 90).data)).convert("RGB")
    if mode in ("LA", "RGBA"):
        image.putalpha(image.convert("L"))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    ref = ImageRef(data=buffer.getvalue())
    pictures = open_processor(folders["native"]).pictures
    expected = image_processor()(images=[Image.open(io.BytesIO(ref.data))], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(as_pixels(pictures.patches(ref, pictures.grid(ref))), expected)


def model_card(image):
    """What the model cards' code makes of a picture: its grid of tiles, cut out one by one, and a thumbnail."""
    width, height = image.size
    ratios = sorted({(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= MOST}, key=lambda r: r[0] * r[1])
    best = min(ratios, key=lambda r: abs(width / height - r[0] / r[1]))
    resized = image.resize((TILE * best[0], TILE * best[1]))
    tiles = []
    for row in range(best[1]):
        for column in range(best[0]):
            corner = (column * TILE, row * TILE)
            tiles.append(resized.crop((*corner, corner[0] + TILE, corner[1] + TILE)))
    if len(tiles) > 1:
        tiles.append(image.resize((TILE, TILE)))
    as_tensor = [torch.from_numpy(np.array(tile)).permute(2, 0, 1).float().div(255) for tile in tiles]
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    return torch.stack([x.sub(mean).div(std) for x in as_tensor]).numpy()


@pytest.mark.parametrize("size", SIZES[:3])
def test_pixels_equal_the_model_cards_code(folders, size):
    ref = picture(*size)
    pictures = open_processor(folders["original"]).pictures
    expected = model_card(Image.open(io.BytesIO(ref.data)).convert("RGB"))
    np.testing.assert_array_equal(as_pixels(pictures.patches(ref, pictures.grid(ref))), expected)


def test_prompts_equal_transformers(folders):
    folder = folders["native"]
    processor = open_processor(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = HFProcessor(
        image_processor=image_processor(), tokenizer=tokenizer, image_seq_length=16,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    for item in (
        problem("a", "what is 1 + 1 ?"),
        problem("b", "how many dots ?", (90, 100)),
        problem("c", "compare the two", (150, 90), (64, 64), (100, 310)),
    ):
        images = [Image.open(io.BytesIO(ref.data)) for ref in item.images]
        text = tokenizer.apply_chat_template(list(item.messages), tokenize=False, add_generation_prompt=True)
        expected = theirs(images=images or None, text=text, return_tensors="np")["input_ids"][0]
        prompt = processor(item)
        np.testing.assert_array_equal(prompt.tokens, expected)
        # The k-th context token is the k-th merged patch, and every token has a position of its own.
        places = np.flatnonzero(prompt.tokens == processor.image_token_id)
        np.testing.assert_array_equal(prompt.image_index[places], np.arange(len(places)))
        assert (np.delete(prompt.image_index, places) == -1).all()
        np.testing.assert_array_equal(prompt.positions, np.tile(np.arange(len(expected)), (3, 1)))
        assert processor.measure(item) == (len(prompt.tokens), prompt.images.num_windows)
        np.testing.assert_array_equal(
            prompt.images.image_ids, np.repeat(np.arange(len(images)), [processor.pictures.geometry.num_windows(
                processor.pictures.grid(ref)) for ref in item.images])
        )  # fmt: skip


def test_a_token_that_begins_every_text_begins_prompts_too(folders, tmp_path):
    """As in checkpoints with InternLM2's tokenizer: once, and not before a response."""
    folder = tmp_path / "model"
    write_checkpoint_files(folders["native"], folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    bos = added_tokens(folder)["<|endoftext|>"]
    sequence = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": sequence, "pair": sequence,
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [bos], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|endoftext|>"}))
    item = problem("b", "how many dots ?", (90, 100))
    plain = open_processor(folders["native"])
    np.testing.assert_array_equal(open_processor(folder)(item).tokens, [bos, *plain(item).tokens])
    np.testing.assert_array_equal(open_processor(folder).encode_response("4"), plain.encode_response("4"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{- bos_token -}}\n" + template)
    np.testing.assert_array_equal(open_processor(folder)(item).tokens, [bos, *plain(item).tokens])


def test_the_original_layout_writes_the_prompt_of_its_chat(folders, tmp_path):
    """The turns of OpenGVLab's `internvl2_5`; `<image>` and a line's end in a plain string, then replaced."""
    folder = tmp_path / "model"
    write_checkpoint_files(folders["original"], folder)
    (folder / "chat_template.jinja").unlink()

    def text(item):
        processor = open_processor(folder)
        return processor.tokenizer.backend_tokenizer.decode(processor(item).tokens.tolist(), skip_special_tokens=False)

    item = problem("c", "compare the two", (64, 64), (90, 300))
    one = "<IMG_CONTEXT>" * 16
    four = "<IMG_CONTEXT>" * 64
    user = f"<|im_start|>user\n<img>{one}</img>\ncompare the two<img>{four}</img>\n<|im_end|>\n<|im_start|>assistant\n"
    assert text(item) == f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n{user}"
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    with_system = replace(item, messages=(system, *item.messages))
    assert text(with_system) == f"<|im_start|>system\nBe brief.<|im_end|>\n{user}"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"system_message": 'Say "yes"\nor no.'}))
    assert text(item).startswith('<|im_start|>system\nSay "yes"\nor no.<|im_end|>\n<|im_start|>user')
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")  # one of your own wins
    assert text(problem("d", "hello")) == "hello"


def test_max_pixels_bounds_the_tiles(folders):
    wide = picture(300, 100)
    for layout in folders.values():
        assert open_processor(layout).pictures.grid(wide) == (1, 3)
        assert open_processor(layout, max_pixels=2 * TILE**2).pictures.grid(wide) == (1, 2)
        assert open_processor(layout, max_pixels=1).pictures.grid(wide) == (1, 1)


def test_a_tokenizer_with_code_of_its_own_is_read_from_its_json(folders, tmp_path):
    """Nothing that a checkpoint brings is run, and without the fast file the message says what is missing."""
    folder = tmp_path / "model"
    write_checkpoint_files(folders["original"], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_x.Tokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_x.py").write_text("raise SystemExit('this was run')")
    item = problem("c", "compare the two", (64, 64))
    np.testing.assert_array_equal(open_processor(folder)(item).tokens, open_processor(folders["original"])(item).tokens)
    (folder / "added_tokens.json").write_text(json.dumps(added_tokens(folder)))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"code of its own needs a tokenizer.json beside it"):
        open_processor(folder)


@pytest.mark.parametrize("text", ["<IMG_CONTEXT>", "<img>", "</img>", "<image>"])
def test_placeholders_in_texts_are_refused(folders, text):
    with pytest.raises(UserError, match=f"its text contains the literal token {text}"):
        open_processor(folders["native"])(problem("a", f"what is {text} ?"))


def test_settings_that_do_not_fit(folders, tmp_path):
    folder = tmp_path / "model"
    write_checkpoint_files(folders["native"], folder)
    file = next(folder.glob("*processor_config.json"))
    content = json.loads(file.read_text())
    (content.get("image_processor") or content)["size"] = {"height": 448, "width": 448}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="size is .*448.* but config.json's tower has tiles of 112 pixels"):
        open_processor(folder)
    file.unlink()
    with pytest.raises(UserError, match="neither preprocessor_config.json nor"):
        open_processor(folder)


def write_checkpoint_files(source, folder):
    folder.mkdir()
    for file in source.glob("*.json*"):
        (folder / file.name).write_bytes(file.read_bytes())
    for file in source.glob("*.jinja"):
        (folder / file.name).write_bytes(file.read_bytes())


def test_absurd_strips_are_refused(folders, tmp_path):
    Image.new("RGB", (1, 300)).save(tmp_path / "strip.png")
    with pytest.raises(UserError, match="1 x 300 pixels, differ by more than a factor of 200"):
        open_processor(folders["native"]).pictures.grid(ImageRef(path=tmp_path / "strip.png"))


def test_a_thumbnail_only_beside_several_tiles():
    geometry = TileGeometry(tile_size=56, patch_size=14, merge_size=2, thumbnail=True)
    assert [geometry.num_windows(grid) for grid in ((1, 1), (1, 2), (2, 3))] == [1, 3, 7]
    assert geometry.image_tokens((1, 2)) == 3 * 4
    layout = geometry.layout((1, 1))
    np.testing.assert_array_equal(layout.patch_positions[0, :6], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]])
