"""`config.json` of both transformers generations: read alike, written so that transformers reads it back."""

import copy
import dataclasses
import math

import pytest

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.checkpoint_config import OtherFiles
from mmeureka_jax.models.families import family_named, weight_mappings
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig
from mmeureka_jax.models.text_only import TextOnlyConfig

# The files of the released models, as transformers 4 wrote them.
QWEN_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
QWEN_3B = {
    **QWEN_7B,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vision_config": {**QWEN_7B["vision_config"], "out_hidden_size": 2048},
    "vocab_size": 151936,
}
# Of the hub too: no vision `hidden_act`, and `hidden_size` is the decoder's.
QWEN2_VL_7B = {
    **{key: value for key, value in QWEN_7B.items() if key != "vision_config"},
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "max_position_embeddings": 32768,
    "model_type": "qwen2_vl",
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}
# Text models of the hub, likewise.
QWEN2_5_HALF_B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_8B = {
    **QWEN2_5_HALF_B,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
}


def edited(base: dict, path: str, value: object) -> dict:
    """A copy of `base` with the dotted key set, or removed if the value is None."""
    result = copy.deepcopy(base)
    *parents, last = path.split(".")
    node = result
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return result


def nested(flat: dict) -> dict:
    """The same settings as transformers 5 writes them."""
    top = ("architectures", "model_type", "vision_config", "tie_word_embeddings")
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = {k: v for k, v in flat.items() if k not in (*top, *ids, "rope_scaling", "rope_theta", "vision_token_id")}
    text |= {
        "model_type": "qwen2_5_vl_text",
        "layer_types": ["full_attention"] * flat["num_hidden_layers"],
        "sliding_window": None,
        "rope_parameters": {
            "mrope_section": flat["rope_scaling"]["mrope_section"],
            "rope_theta": flat["rope_theta"],
            "rope_type": "default",
            "type": "mrope",
        },
    }
    vision = {k: v for k, v in flat["vision_config"].items() if k not in ("in_chans", "spatial_patch_size")}
    return {
        **{k: flat[k] for k in (*ids, "tie_word_embeddings", "model_type")},
        "text_config": text,
        "vision_config": {**vision, "in_channels": 3, "model_type": "qwen2_5_vl_vision"},
    }


def test_reads_the_7b_file():
    config = Qwen2_5VLConfig.from_hf(QWEN_7B, GENERATION, "config.json")
    text = config.text
    vision = config.vision
    assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (152064, 3584, 18944)
    assert (text.num_layers, text.num_heads, text.num_kv_heads, text.head_dim) == (28, 28, 4, 128)
    assert (text.rms_norm_eps, text.rope_theta, text.mrope_section) == (1e-6, 1e6, (16, 24, 24))
    assert not text.tie_word_embeddings
    assert (vision.hidden_size, vision.intermediate_size, vision.depth, vision.num_heads) == (1280, 3420, 32, 16)
    assert (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size) == (14, 2, 2)
    assert (vision.window_size, vision.in_channels, vision.out_hidden_size) == (112, 3, 3584)
    assert vision.full_attention_blocks == (7, 15, 23, 31)
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (151652, 151653)
    assert (config.eos_token_ids, config.pad_token_id) == ((151645, 151643), 151643)
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize("flat", [QWEN_3B, QWEN_7B], ids=["3b", "7b"])
def test_both_generations_of_the_file_read_alike(flat):
    old = Qwen2_5VLConfig.from_hf(flat, GENERATION, "config.json")
    assert Qwen2_5VLConfig.from_hf(nested(flat), GENERATION, "config.json") == old
    # transformers 4.52-4.57 wrote both forms into one file, with nulls in the nested one.
    both = {**flat, "text_config": {**nested(flat)["text_config"], "image_token_id": None}}
    assert Qwen2_5VLConfig.from_hf(both, GENERATION, "config.json") == old
    assert Qwen2_5VLConfig.from_hf(old.to_hf("bfloat16"), old.to_hf_generation(), "config.json") == old


def test_end_and_padding_tokens_without_a_generation_config():
    config = Qwen2_5VLConfig.from_hf(QWEN_7B, None, "config.json")
    assert config.eos_token_ids == (151645,)
    assert config.pad_token_id == 151645  # as transformers pads when nothing is named


@pytest.mark.parametrize("where", ["tie_word_embeddings", "text_config.tie_word_embeddings"])
def test_tied_if_either_level_says_so(where):
    untied = edited(nested(QWEN_7B), "text_config.tie_word_embeddings", False)
    assert Qwen2_5VLConfig.from_hf(edited(untied, where, True), None, "c").text.tie_word_embeddings


def test_given_head_dim_is_kept():
    given = edited(edited(QWEN_7B, "head_dim", 64), "rope_scaling.mrope_section", [8, 12, 12])
    config = Qwen2_5VLConfig.from_hf(given, None, "config.json")
    assert config.text.head_dim == 64
    assert Qwen2_5VLConfig.from_hf(config.to_hf(), None, "config.json").text == config.text


@pytest.mark.parametrize("flat", [QWEN_3B, QWEN_7B], ids=["3b", "7b"])
def test_transformers_reads_what_is_written(flat):
    import transformers

    config = Qwen2_5VLConfig.from_hf(flat, GENERATION, "config.json")
    theirs = transformers.Qwen2_5_VLConfig.from_dict(config.to_hf("bfloat16"))
    reference = transformers.Qwen2_5_VLConfig.from_dict(copy.deepcopy(flat))
    for part in ("text_config", "vision_config"):
        ours = getattr(theirs, part).to_dict()
        real = getattr(reference, part).to_dict()
        differing = {k for k in {*ours, *real} if ours.get(k) != real.get(k)}
        # padding comes from generation_config.json here; the last three are unused or other names of what is equal
        assert differing <= {"pad_token_id", "max_window_layers", "spatial_patch_size", "in_chans"}
    for key in ("tie_word_embeddings", "image_token_id", "video_token_id", "vision_start_token_id", "dtype"):
        assert getattr(theirs, key) == getattr(reference, key)
    # What transformers makes of the released file, in its newest form, reads as the released file does.
    resaved = Qwen2_5VLConfig.from_hf(reference.to_dict(), GENERATION, "config.json")
    assert resaved == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config", None, "vision_config"),
        ("hidden_act", "gelu", "gelu"),
        ("vision_config.hidden_act", "quick_gelu", "quick_gelu"),
        ("rope_scaling", None, "rotary"),
        ("rope_scaling.type", "yarn", "yarn"),
        ("rope_scaling.mrope_section", None, "mrope"),
        ("rope_scaling.mrope_section", [16, 24], "mrope_section"),
        ("rope_scaling.mrope_section", [16, 24, 25], "head_dim 128"),
        ("rope_scaling.mrope_section", "16", "list of integers"),
        ("hidden_size", None, "hidden_size"),
        ("hidden_size", "big", "hidden_size"),
        ("hidden_size", 2048, "out_hidden_size 3584"),
        ("num_hidden_layers", 0, "positive"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("num_key_value_heads", 5, "28 heads over 5"),
        ("rms_norm_eps", "small", "rms_norm_eps"),
        ("vision_config.depth", True, "vision_config.depth"),
        ("vision_config.num_heads", 15, "15 heads"),
        ("vision_config.window_size", 100, "window_size 100"),
        ("vision_config.fullatt_block_indexes", [32], "0..31"),
        ("vision_config.patch_size", [14, 14], "vision_config.patch_size"),
        ("image_token_id", None, "image_token_id"),
        ("image_token_id", 152064, "vocabulary of 152064"),
        ("eos_token_id", None, "eos_token_id"),
        ("eos_token_id", "<|im_end|>", "eos_token_id"),
    ],
)
def test_refusals_name_the_file_and_what_is_wrong(path, value, message):
    with pytest.raises(UserError, match=r"^some/config\.json: ") as error:
        Qwen2_5VLConfig.from_hf(edited(QWEN_7B, path, value), None, "some/config.json")
    assert message in str(error.value)


# As transformers 4.4x saved them: without what its classes have as defaults.
STRIPPED = {
    "qwen2_vl": {"hidden_size": 8192, "in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14},
    "qwen2_5_vl": {"hidden_size": 1280, "in_chans": 3, "model_type": "qwen2_5_vl", "spatial_patch_size": 14},
}


@pytest.mark.parametrize("family", STRIPPED)
def test_what_a_vision_config_leaves_out_is_as_in_transformers(family):
    import transformers

    file = {"qwen2_vl": QWEN2_VL_7B, "qwen2_5_vl": QWEN_7B}[family]
    width = 8192 if family == "qwen2_vl" else 3584
    file = {**file, "hidden_size": width, "num_attention_heads": width // 128, "vision_config": STRIPPED[family]}
    kind = transformers.Qwen2VLConfig if family == "qwen2_vl" else transformers.Qwen2_5_VLConfig
    reference = kind.from_dict(copy.deepcopy(file))
    ours = Qwen2_5VLConfig.from_hf(file, GENERATION, "config.json")
    assert ours == Qwen2_5VLConfig.from_hf(reference.to_dict(), GENERATION, "config.json")
    assert ours.vision.depth == 32 and ours.vision.num_heads == 16 and ours.vision.hidden_size == 1280


@pytest.mark.parametrize("file", [QWEN2_5_HALF_B, QWEN2_VL_7B, QWEN_7B], ids=["text", "qwen2_vl", "qwen2_5_vl"])
def test_the_end_of_a_turn_ends_responses_of_base_checkpoints_too(file):
    config = TextOnlyConfig if file is QWEN2_5_HALF_B else Qwen2_5VLConfig
    base = {"eos_token_id": 151643}
    beside = OtherFiles(lambda: {"<|im_end|>": 151645})
    read = config.from_hf(file, base, "config.json", beside)
    assert (read.eos_token_ids, read.pad_token_id) == ((151645, 151643), 151643)
    assert config.from_hf(file, base, "config.json", OtherFiles()).eos_token_ids == (151643,)
    assert config.from_hf(file, GENERATION, "config.json", beside).eos_token_ids == (151645, 151643)


def test_qwen2_vl_of_the_hub():
    import transformers

    config = Qwen2_5VLConfig.from_hf(QWEN2_VL_7B, GENERATION, "config.json")
    vision = config.vision
    assert (vision.hidden_size, vision.intermediate_size, vision.out_hidden_size) == (1280, 5120, 3584)
    assert vision.patches_per_window == 4 and vision.full_attention_blocks == tuple(range(32))
    shapes = [mapping.shape for mapping in weight_mappings(config) for _ in mapping.tensors()]
    assert sum(math.prod(shape) for shape in shapes) == 8_291_375_616  # of the hub's page: 8.29 B
    assert Qwen2_5VLConfig.from_hf(config.to_hf(), config.to_hf_generation(), "config.json") == config
    reference = transformers.Qwen2VLConfig.from_dict(copy.deepcopy(QWEN2_VL_7B))
    assert Qwen2_5VLConfig.from_hf(reference.to_dict(), GENERATION, "config.json") == config
    ours = transformers.Qwen2VLConfig.from_dict(config.to_hf())
    real = reference.vision_config.to_dict()
    written = ours.vision_config.to_dict()
    assert {key: value for key, value in real.items() if key != "in_chans"}.items() <= written.items()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config.hidden_act", "silu", "vision_config.hidden_act is 'silu'; the policy has only 'quick_gelu'"),
        ("vision_config.embed_dim", "wide", "key 'vision_config.embed_dim' is 'wide', expected an integer"),
        ("vision_config.mlp_ratio", 3.5, "'vision_config.mlp_ratio' is 3.5, expected a whole number"),
        ("vision_config.hidden_size", 1280, "out_hidden_size 1280 differs from hidden_size 3584"),
        ("vision_config.rope_parameters", {"rope_theta": 5e5}, "rope_parameters.rope_theta is 500000.0"),
    ],
)
def test_qwen2_vl_files_that_are_refused(path, value, message):
    with pytest.raises(UserError) as error:
        Qwen2_5VLConfig.from_hf(edited(QWEN2_VL_7B, path, value), None, "config.json")
    assert message in str(error.value)


@pytest.mark.parametrize(("file", "size"), [(QWEN2_5_HALF_B, 494_032_768), (QWEN3_8B, 8_190_735_360)])
def test_text_models_of_the_hub(file, size):
    import transformers

    config = TextOnlyConfig.from_hf(file, GENERATION, "config.json")
    shapes = [mapping.shape for mapping in weight_mappings(config) for _ in mapping.tensors()]
    assert sum(math.prod(shape) for shape in shapes) == size  # of the hub's page
    assert (config.eos_token_ids, config.pad_token_id, config.bos_token_id) == ((151645, 151643), 151643, 151643)
    assert config.to_hf("bfloat16") == file
    # What transformers makes of the file, in its newest form, says the same.
    resaved = transformers.AutoConfig.for_model(**copy.deepcopy(file)).to_dict()
    assert TextOnlyConfig.from_hf(resaved, GENERATION, "config.json").text == config.text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act is 'gelu'; the policy has only 'silu'"),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}, "'yarn'"),
        ("use_sliding_window", True, "sliding-window attention is in use"),
        ("num_key_value_heads", 3, "14 heads over 3"),
        ("num_hidden_layers", 0, "not positive"),
        ("vocab_size", None, "key 'vocab_size' is missing"),
        ("eos_token_id", None, "names an eos_token_id"),
    ],
)
def test_text_files_that_are_refused(path, value, message):
    with pytest.raises(UserError, match=r"^some/config\.json: ") as error:
        TextOnlyConfig.from_hf(edited(QWEN2_5_HALF_B, path, value), None, "some/config.json")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["qwen3_vl", None])
def test_other_families_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"some/config.json: model_type is {name!r}, but only 'qwen2_5_vl', 'qwen2_vl'"):
        family_named(name, "some/config.json")


def test_sliding_windows_are_refused_only_when_in_use():
    sliding = {**QWEN_7B, "use_sliding_window": True}
    Qwen2_5VLConfig.from_hf(sliding, None, "c")  # from layer 28 on, of 28
    with pytest.raises(UserError, match="sliding-window"):
        Qwen2_5VLConfig.from_hf({**sliding, "max_window_layers": 14}, None, "c")
    kinds = ["full_attention"] * 27 + ["sliding_attention"]
    with pytest.raises(UserError, match="sliding-window"):
        Qwen2_5VLConfig.from_hf(edited(nested(QWEN_7B), "text_config.layer_types", kinds), None, "c")
