"""Problems to prompts, against transformers' Qwen2.5-VL processor and rotary positions; and back to text."""

import io
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import torch
from helpers.support import WithoutVideo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Qwen2_5_VLModel,
    Qwen2_5_VLProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmeureka_jax.config.schema import RandomModelConfig
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.data.prompts import apply_prompt_style
from mmeureka_jax.data.record import ImageRef, Problem, RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.models.batch import collate, pick_bucket
from mmeureka_jax.setup.random_models import RANDOM_MODEL_FILE, write_tiny_checkpoint

MAX_PIXELS = 100 * 28 * 28


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor") / "checkpoint"
    write_tiny_checkpoint(
        folder,
        RandomModelConfig(
            hidden_size=32,
            intermediate_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            vision_hidden_size=16,
            vision_intermediate_size=16,
            vision_depth=1,
            vision_num_heads=1,
            vision_full_attention_blocks=(0,),
        ),
    )
    return folder


@pytest.fixture
def changed(checkpoint, tmp_path):
    """A copy of the checkpoint's small files, to change."""
    folder = tmp_path / "changed"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(scope="module")
def processor(checkpoint):
    return make(checkpoint)


def make(folder, prompt_style="plain", max_prompt_tokens=2000, max_pixels=MAX_PIXELS, **options):
    return Processor.from_checkpoint(
        folder, prompt_style=prompt_style, max_prompt_tokens=max_prompt_tokens, max_pixels=max_pixels, **options
    )


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def problem(*parts, problem_id="p1", before=()):
    """A problem of one user turn: texts, and (width, height) for pictures; `before` are earlier (role, text) turns."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    sizes = [part for part in parts if not isinstance(part, str)]
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in before]
    images = tuple(ImageRef(data=picture(*size, seed)) for seed, size in enumerate(sizes))
    return Problem(problem_id, (*turns, {"role": "user", "content": content}), images, "1")


PROBLEMS = {
    "one": problem((112, 112), "How many dots are there?"),
    "text only": problem("What is 1 + 1?"),
    "odd sizes": problem((301, 90), "and", (57, 200), (29, 28), "Which is larger? <think>"),
    "picture last": problem("Look: ", (400, 260)),
    "chat": problem((500, 300), "2?", before=[("system", "Be brief."), ("user", "1?"), ("assistant", "one")]),
    "unicode": problem((150, 140), "Größe von ∠ABC = 30°? 你好 \n\n 🙂"),
}


class HFProcessor(WithoutVideo, Qwen2_5_VLProcessor):
    pass


class OlderHFProcessor(WithoutVideo, Qwen2VLProcessor):
    pass


THEIRS = {"qwen2_5_vl": (Qwen2_5_VLModel, HFProcessor), "qwen2_vl": (Qwen2VLModel, OlderHFProcessor)}


def hf_inputs(folder, kind, messages, images):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, max_pixels=MAX_PIXELS)
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    pictures = [Image.open(io.BytesIO(ref.read_bytes())) for ref in images]
    return kind(image_processor, tokenizer)(text=[text], images=pictures or None, return_tensors="pt")


def assert_equal_to_hf(folder, processor, case):
    ours = processor(case)
    messages = apply_prompt_style(case.messages, processor.prompt_style)
    model_class, processor_class = THEIRS[processor.config.model_type]
    hf = hf_inputs(folder, processor_class, messages, case.images)
    np.testing.assert_array_equal(ours.tokens, hf["input_ids"][0].numpy())

    with torch.device("meta"):
        model = model_class(AutoConfig.from_pretrained(folder))
    positions, delta = model.get_rope_index(
        hf["input_ids"], mm_token_type_ids=hf["mm_token_type_ids"], image_grid_thw=hf.get("image_grid_thw")
    )
    np.testing.assert_array_equal(ours.positions, positions[:, 0].numpy())
    assert ours.next_position == ours.positions.max() + 1 == len(ours.tokens) + int(delta)

    is_image = ours.tokens == processor.image_token_id
    np.testing.assert_array_equal(ours.image_index >= 0, is_image)
    pixels = hf["pixel_values"].numpy() if case.images else np.zeros((0, 1176), np.float32)
    frames = pixels.reshape(-1, 4, 3, 2, 196)[:, :, :, 0].reshape(-1, 4, 588)
    units = ours.images.patches.reshape(-1, 4, 588)  # where the device finds the k-th image token
    np.testing.assert_array_equal(units[ours.image_index[is_image]], frames)
    # The windows of the k-th picture are marked k.
    tokens_of = [int(grid.prod()) // 4 for grid in hf.get("image_grid_thw", ())]
    of_token = ours.images.image_ids[ours.image_index[is_image] // processor.pictures.geometry.units_per_window]
    np.testing.assert_array_equal(of_token, np.repeat(np.arange(len(tokens_of)), tokens_of))
    assert ours.images.patch_mask.sum() == len(pixels)
    assert processor.measure(case) == (len(ours.tokens), ours.images.num_windows)
    return ours


@pytest.mark.parametrize("case", PROBLEMS.values(), ids=PROBLEMS)
def test_prompts_equal_hf(checkpoint, processor, case):
    assert_equal_to_hf(checkpoint, processor, case)


def test_prompts_of_qwen2_vl_equal_hf_and_have_no_padding(checkpoint, tmp_path):
    """Its tower has no windows: each image token is one."""
    folder = tmp_path / "qwen2_vl"
    random = json.loads((checkpoint / RANDOM_MODEL_FILE).read_text())
    write_tiny_checkpoint(folder, RandomModelConfig(**random | {"family": "qwen2_vl"}))
    processor = make(folder)
    for case in PROBLEMS.values():
        ours = assert_equal_to_hf(folder, processor, case)
        assert ours.images.patch_mask.all() and ours.images.num_windows == (ours.image_index >= 0).sum()


@pytest.mark.parametrize("style", ["instruct", "zero", "cpgd"])
def test_styled_prompts_equal_hf(checkpoint, style):
    assert_equal_to_hf(checkpoint, make(checkpoint, style), PROBLEMS["chat"])


def test_types_and_shapes(processor):
    for case in (PROBLEMS["text only"], PROBLEMS["odd sizes"]):
        prompt = processor(case)
        length, windows = processor.measure(case)
        arrays = {**vars(prompt), **vars(prompt.images)}
        shapes = {name: (array.shape, array.dtype) for name, array in arrays.items() if name != "images"}
        assert shapes == {
            "tokens": ((length,), np.int32),
            "positions": ((3, length), np.int32),
            "length": ((), np.int32),
            "next_position": ((), np.int32),
            "image_index": ((length,), np.int32),
            "patches": ((windows, 64, 588), np.float32),
            "patch_positions": ((windows, 64, 2), np.int32),
            "patch_mask": ((windows, 64), bool),
            "image_ids": ((windows,), np.int32),
        }


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(4, 500), st.integers(4, 500)), max_size=3), text=st.text(max_size=30))
def test_measuring_agrees_with_processing(processor, sizes, text):
    case = problem(*sizes, text)
    prompt = processor(case)
    assert processor.measure(case) == (len(prompt.tokens), prompt.images.num_windows)


def test_measuring_decodes_nothing(processor, monkeypatch):
    monkeypatch.setattr("mmeureka_jax.data.pictures.read_picture", lambda ref: pytest.fail("decoded"))
    assert processor.measure(PROBLEMS["odd sizes"])[1] > 0


# Templates.


def test_the_template_of_the_hubs_chat_template_json_is_used(changed):
    """As on the hub, where only HF's processor reads that file; its template makes up a system turn."""
    template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
        + (changed / "chat_template.jinja").read_text()
    )
    (changed / "chat_template.jinja").unlink()
    (changed / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    text = make(changed).tokenizer.decode(make(changed)(PROBLEMS["text only"]).tokens)
    assert text.startswith("<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nWhat")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_template_of_tokenizer_config_is_used(changed):
    config = json.loads((changed / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}T:{{ m['content'][0]['text'] }}{% endfor %}"
    (changed / "tokenizer_config.json").write_text(json.dumps(config))
    (changed / "chat_template.jinja").unlink()
    processor = make(changed)
    assert processor.decode(processor(PROBLEMS["text only"]).tokens) == "T:What is 1 + 1?"
    with pytest.raises(RowError, match="'p1'.*wrote 0 placeholders for 1 pictures"):
        make(changed)(problem("see", (60, 60)))


def test_checkpoints_that_cannot_be_used(changed):
    (changed / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        make(changed)
    (changed / "chat_template.json").write_text("{}")
    with pytest.raises(UserError, match="chat_template.json"):
        make(changed)
    config = json.loads((changed / "config.json").read_text())
    config["image_token_id"] = spare = config["vocab_size"] - 1
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"image_token_id of config.json is {spare}"):
        make(changed)
    (changed / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read as JSON"):
        make(changed)
    (changed / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer cannot be loaded"):
        make(changed)


# Rows that are refused.


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
def test_placeholders_in_texts_are_refused_by_id(processor, token):
    for call in (processor, processor.measure):
        with pytest.raises(RowError, match="problem 'bad': .*literal token") as caught:
            call(problem((60, 60), f"a{token}b", problem_id="bad"))
        assert caught.value.problem_id == "bad" and token in str(caught.value)
    with pytest.raises(UserError, match="literal token"):
        processor.encode_response(f"a{token}")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_special_tokens_in_texts_are_refused_by_id(processor, token):
    """They would end the question's turn, and begin another."""
    with pytest.raises(RowError, match="problem 'bad': .*literal token .* a special one of the model"):
        processor.measure(problem((60, 60), f"a{token}b", problem_id="bad"))
    with pytest.raises(UserError, match="literal token"):
        processor.encode_response(f"a{token}b")
    assert len(processor(problem((60, 60), "<think> </think> <answer> |im_end|")).tokens)  # ordinary words


def test_roles_that_the_template_refuses_are_row_errors(changed):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
    original = (changed / "chat_template.jinja").read_text()
    (changed / "chat_template.jinja").write_text(template + original)
    processor = make(changed)
    turns = [{"role": role, "content": [{"type": "text", "text": "?"}]} for role in ("system", "user")]
    assert processor.measure(Problem("good", tuple(turns[1:]), (), "1"))
    with pytest.raises(RowError, match="problem 'bad': .*refuses the turns system, user .*no system, please"):
        processor.measure(Problem("bad", tuple(turns), (), "1"))


def test_long_prompts_are_refused_with_both_numbers(checkpoint, processor):
    length, _ = processor.measure(PROBLEMS["chat"])
    assert len(make(checkpoint, max_prompt_tokens=length)(PROBLEMS["chat"]).tokens) == length
    short = make(checkpoint, max_prompt_tokens=length - 1)
    for call in (short, short.measure):
        with pytest.raises(RowError, match=f"problem 'p1': .* {length} tokens .*max_prompt_tokens = {length - 1}"):
            call(PROBLEMS["chat"])


def test_bad_pictures_are_refused_by_id_and_file(processor, tmp_path):
    (tmp_path / "cut.png").write_bytes(picture(300, 300)[:-400])
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    for name, calls in (("gone.png", (processor, processor.measure)), ("cut.png", (processor,))):
        case = Problem("row-7", ({"role": "user", "content": content},), (ImageRef(path=tmp_path / name),), "1")
        for call in calls:
            with pytest.raises(RowError, match=f"problem 'row-7': image .*{name}") as caught:
                call(case)
            assert (caught.value.kind, caught.value.problem_id) == ("unusable image", "row-7")


# Responses.


@pytest.mark.parametrize("text", ["<think> 1 + 1 </think><answer> $2$ </answer>", "", " ∠A\n\n= 30° 🙂"])
def test_responses_end_with_the_end_token_and_come_back(processor, text):
    tokens = processor.encode_response(text)
    assert tokens.dtype == np.int32 and tokens[-1] == processor.end_token_id == processor.eos_token_ids[0]
    expected = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens[:-1].tolist() == expected
    assert processor.decode(tokens) == text


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", " <|im_end|> "])
def test_an_end_token_that_the_text_brings_is_the_end(processor, end):
    plain = processor.encode_response(" 2" + end[: end.index("<")])
    assert processor.encode_response(f" 2{end}").tolist() == plain.tolist()
    assert processor.encode_response(f" 2{end}", finished=False).tolist() == plain.tolist()
    assert processor.encode_response(" 2", finished=False).tolist() == processor.encode_response(" 2").tolist()[:-1]


def test_decoding_skips_special_tokens_and_spare_rows_of_the_vocabulary(processor):
    tokens = processor.encode_response("<think>a")
    spare = processor.config.text.vocab_size - 1
    assert processor.tokenizer.convert_ids_to_tokens(spare) is None
    assert processor.decode([processor.pad_token_id, *tokens, spare, *tokens]) == "<think>a<think>a"


@pytest.mark.parametrize("listed", [False, True])
def test_end_tokens_are_those_of_generation_config_and_the_end_of_a_turn(changed, listed):
    tokenizer = make(changed).tokenizer
    end, text = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    (changed / "generation_config.json").write_text(json.dumps({"eos_token_id": [text, end] if listed else text}))
    processor = make(changed)
    assert processor.eos_token_ids == ((text, end) if listed else (end, text))
    assert processor.encode_response("a")[-1] == end


# Workers.


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_pickled_processors_work(processor):
    processor.measure(PROBLEMS["one"])
    pickled = pickle.dumps(processor)
    assert len(pickled) < 20_000  # the tokenizer is not in it
    copy = pickle.loads(pickled)
    same(copy(PROBLEMS["odd sizes"]), processor(PROBLEMS["odd sizes"]))
    assert copy.prompt_style == processor.prompt_style


def test_threads_share_a_processor(processor):
    cases = list(PROBLEMS.values()) * 8
    with ThreadPoolExecutor(8) as pool:
        for case, prompt in zip(cases, pool.map(processor, cases), strict=True):
            same(prompt, processor(case))


# Batches.


def test_collate_pads_on_the_right(processor):
    prompts = [processor(PROBLEMS[name]) for name in ("text only", "odd sizes", "one")]
    length = max(len(p.tokens) for p in prompts) + 3
    windows = max(p.images.num_windows for p in prompts) + 2
    batch = collate(prompts, length, windows)
    assert batch.tokens.shape == (3, length) and batch.images.patches.shape == (3, windows, 64, 588)
    for row, prompt in enumerate(prompts):
        used = len(prompt.tokens)
        filled = prompt.images.num_windows
        assert batch.length[row] == prompt.length == used and batch.next_position[row] == prompt.next_position
        np.testing.assert_array_equal(batch.tokens[row, :used], prompt.tokens)
        np.testing.assert_array_equal(batch.positions[row, :, :used], prompt.positions)
        np.testing.assert_array_equal(batch.image_index[row, :used], prompt.image_index)
        assert not batch.positions[row, :, used:].any() and (batch.image_index[row, used:] == -1).all()
        images = jax.tree.map(lambda array, row=row: array[row], batch.images)
        np.testing.assert_array_equal(images.patches[:filled], prompt.images.patches)
        np.testing.assert_array_equal(images.patch_positions[:filled], prompt.images.patch_positions)
        np.testing.assert_array_equal(images.patch_mask[:filled], prompt.images.patch_mask)
        np.testing.assert_array_equal(images.image_ids[:filled], prompt.images.image_ids)
        assert not images.patch_mask[filled:].any() and (images.image_ids[filled:] == -1).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(batch)} == {np.dtype(t) for t in (np.int32, np.float32, bool)}


def test_collate_without_pictures_and_what_does_not_fit(processor):
    text = processor(PROBLEMS["text only"])
    one = processor(PROBLEMS["one"])
    batch = collate([text, text], 64, 0)
    assert batch.images.patches.shape == (2, 0, 64, 588) and batch.images.image_ids.shape == (2, 0)
    with pytest.raises(UserError, match="1 windows, over 0"):
        collate([text, one], 512, 0)
    with pytest.raises(UserError, match=f"{len(one.tokens)} tokens does not fit in 8"):
        collate([one], 8, 1)


def test_the_smallest_bucket_that_fits():
    assert [pick_bucket(length, (64, 128)) for length in (1, 64, 65, 128)] == [64, 64, 128, 128]
    with pytest.raises(ValueError, match="129 fits in none"):
        pick_bucket(129, (64, 128))
