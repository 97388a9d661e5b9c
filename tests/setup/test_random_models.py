"""The built-in checkpoint: real files that transformers loads, and a tokenizer that loses nothing."""

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from mmeureka_jax.config.schema import RandomModelConfig
from mmeureka_jax.data.shapes.problems import vocabulary_corpus
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import load_params, read_config
from mmeureka_jax.setup.random_models import (
    RANDOM_MODEL_FILE,
    SPECIAL_TOKENS,
    STEP_TOKENS,
    TAG_TOKENS,
    build_tokenizer_files,
    write_tiny_checkpoint,
)

SMALL = RandomModelConfig(
    hidden_size=64, intermediate_size=96, num_layers=2, num_heads=2, num_kv_heads=1, vision_hidden_size=32,
    vision_intermediate_size=48, vision_depth=2, vision_num_heads=2, vision_full_attention_blocks=(1,),
)  # fmt: skip
LITERALS = [*SPECIAL_TOKENS, *TAG_TOKENS, *STEP_TOKENS]
SURROGATE_FREE = st.text(st.characters(exclude_categories=["Cs"]))
TEXTS = st.lists(st.one_of(SURROGATE_FREE, st.sampled_from(LITERALS), st.from_regex(r"[ \n]*[0-9a-z<>/|]*"))).map(
    "".join
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_tiny_checkpoint(path, SMALL)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_any_text_comes_back_as_it_was(tokenizer, auto_tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert auto_tokenizer.encode(text) == ids
    assert auto_tokenizer.decode(ids) == text
    without = re.sub("|".join(map(re.escape, SPECIAL_TOKENS)), "", text)
    assert auto_tokenizer.decode(ids, skip_special_tokens=True) == without


@settings(deadline=None)
@given(st.integers(0), st.sampled_from(["", " ", "x", "=", "<think>", "+", ".", "("]))
def test_every_digit_is_a_token_of_its_own(tokenizer, number, before):
    tokens = tokenizer.encode(f"{before}{number}{before}{number}").tokens
    assert [token for token in tokens if re.search("[0-9]", token)] == list(f"{number}{number}")


def test_no_token_joins_a_digit_with_anything(tokenizer):
    assert {token for token in tokenizer.get_vocab() if re.search("[0-9]", token)} == set("0123456789")


@pytest.mark.parametrize("tag", [*TAG_TOKENS, *STEP_TOKENS])
def test_tags_are_one_ordinary_token_wherever_they_stand(tokenizer, auto_tokenizer, tag):
    token = tokenizer.token_to_id(tag)
    for text in (f"a{tag}b", f"1{tag}<", f" {tag} ", f"{tag}{tag}"):
        ids = tokenizer.encode(text).ids
        assert ids.count(token) == text.count(tag)
        assert auto_tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_words_of_the_built_in_problems_are_single_tokens(tokenizer):
    corpus = vocabulary_corpus()
    words = {word for text in corpus for word in re.findall("[a-z]+", text)} - {"think", "answer"}
    assert len(words) > 50
    assert [word for word in sorted(words) if len(tokenizer.encode(f" {word}").ids) != 1] == []
    # and as they stand in the texts: no piece between two spaces or digits falls apart
    for text in corpus[:: len(corpus) // 50]:
        for token in tokenizer.encode(text).tokens:
            assert token in TAG_TOKENS or not re.search("[a-z][^a-z]|[a-z]$", token) or token.strip("Ġ") in words


def test_special_ids_and_spare_rows(folder, tokenizer):
    config = read_config(folder)
    assert tokenizer.id_to_token(config.image_token_id) == "<|image_pad|>"
    assert tokenizer.id_to_token(config.video_token_id) == "<|video_pad|>"
    assert tokenizer.id_to_token(config.vision_start_token_id) == "<|vision_start|>"
    assert tokenizer.id_to_token(config.vision_end_token_id) == "<|vision_end|>"
    assert [tokenizer.id_to_token(token) for token in config.eos_token_ids] == ["<|im_end|>"]
    assert tokenizer.id_to_token(config.pad_token_id) == "<|endoftext|>"
    assert config.text.vocab_size % 128 == 0
    assert tokenizer.get_vocab_size() <= config.text.vocab_size <= 1024


@pytest.mark.parametrize(
    ("family", "size", "digest"), [("qwen2_5_vl", 705, "8310a6f8928c0a79"), ("internvl", 708, "b7eea755278eea2c")]
)
def test_every_token_but_those_of_steps_has_the_id_it_always_had(tmp_path, family, size, digest):
    ids = build_tokenizer_files(tmp_path, family).get_vocab()
    assert [ids.pop(tag) for tag in STEP_TOKENS] == [size, size + 1]
    assert len(ids) == size
    assert hashlib.sha256(str(sorted(ids.items())).encode()).hexdigest()[:16] == digest


def test_the_chat_template_writes_qwens_turns(auto_tokenizer):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " how many?\n"}, {"type": "image"}]},
        {"role": "assistant", "content": "<think>two</think>"},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "sure?"}]},
    ]
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    expected = (
        f"<|im_start|>user\n{image} how many?\n{image}<|im_end|>\n"
        "<|im_start|>assistant\n<think>two</think><|im_end|>\n"
        f"<|im_start|>user\n{video}sure?<|im_end|>\n"
    )
    render = auto_tokenizer.apply_chat_template
    assert render(messages, tokenize=False) == expected
    assert render(messages, tokenize=False, add_generation_prompt=True) == expected + "<|im_start|>assistant\n"
    system = [{"role": "system", "content": "Be brief."}]
    assert render(system + messages, tokenize=False) == "<|im_start|>system\nBe brief.<|im_end|>\n" + expected


def test_the_files_are_the_same_every_time(folder, tmp_path):
    write_tiny_checkpoint(tmp_path / "again", SMALL)
    write_tiny_checkpoint(tmp_path / "other", replace(SMALL, seed=1))
    of_the_seed = ("model.safetensors", RANDOM_MODEL_FILE)
    names = sorted(file.name for file in folder.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in names:
        content = (folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == content, name
        assert ((tmp_path / "other" / name).read_bytes() == content) == (name not in of_the_seed), name


def test_random_weights_are_distributed_as_transformers_makes_them(folder):
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    fresh = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder)).state_dict()
    matrices = []
    for name, ours in load_file(folder / "model.safetensors").items():
        theirs = fresh[re.sub(r"^(visual\.)", r"model.\1", re.sub(r"^model\.", "model.language_model.", name))].numpy()
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.mean(), theirs.mean(), atol=6 * 0.02 / ours.size**0.5, err_msg=name)
        if ours.std() == 0:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        else:
            matrices.append(ours)
            np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.1, err_msg=name)
    assert len({matrix.ravel()[:4].tobytes() for matrix in matrices}) == len(matrices)  # no two share a draw


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_every_tensor(tmp_path, tied):
    from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration

    path = tmp_path / "checkpoint"
    write_tiny_checkpoint(path, replace(SMALL, tie_word_embeddings=tied))
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.tie_word_embeddings == tied
    head = model.get_output_embeddings().weight
    table = model.get_input_embeddings().weight
    assert (head.data_ptr() == table.data_ptr()) == tied
    assert model.generation_config.eos_token_id == read_config(path).eos_token_ids[0]
    ours = load_params(path, read_config(path))
    np.testing.assert_array_equal(ours["language"]["embed_tokens"]["embedding"], table.detach().numpy())
    size = AutoImageProcessor.from_pretrained(path).size
    assert (size["shortest_edge"], size["longest_edge"]) == (56 * 56, 16384 * 28 * 28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 65}, "hidden_size 65"),
        ({"hidden_size": 62}, "head_dim 31"),
        ({"num_heads": 0}, "number of heads"),
        ({"num_kv_heads": 3}, "2 heads over 3"),
        ({"num_layers": 0}, "not positive"),
        ({"vision_full_attention_blocks": (2,)}, r"\[2\] are not all in 0\.\.1"),
        ({"vision_num_heads": 3}, "over 3 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=f"model.random.*{message}"):
        write_tiny_checkpoint(tmp_path / "out", replace(SMALL, **change))
    assert list(tmp_path.iterdir()) == []
