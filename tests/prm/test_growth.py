"""The checkpoint that a process reward model starts from: new rows are means of old ones, and all else is as it was."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from mmeureka_jax.config.schema import RandomModelConfig
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import read_config, table_names
from mmeureka_jax.prm.form import MarkerTokens
from mmeureka_jax.prm.growth import BASE_FILE, open_base, write_grown
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

SMALL = {
    "hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1,
    "vision_hidden_size": 16, "vision_intermediate_size": 16, "vision_depth": 1, "vision_num_heads": 2,
    "vision_full_attention_blocks": (0,),
}  # fmt: skip


def write_checkpoint(folder, family, *, tied, spare):
    """A checkpoint in bfloat16, its tables with or without spare rows."""
    write_tiny_checkpoint(folder, RandomModelConfig(family=family, tie_word_embeddings=tied, **SMALL))
    tensors = load_file(folder / "model.safetensors")
    tables = table_names(read_config(folder))
    used = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    if not spare:
        for name in tables:
            tensors[name] = tensors[name][:used]
        text = (folder / "config.json").read_text()
        before = read_config(folder).text.vocab_size
        (folder / "config.json").write_text(text.replace(f'"vocab_size": {before}', f'"vocab_size": {used}'))
    save_file({name: x.astype("bfloat16") for name, x in tensors.items()}, folder / "model.safetensors")
    return used


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "internvl", "qwen2"])
@pytest.mark.parametrize(("tied", "spare"), [(True, False), (False, False), (False, True)])
def test_new_rows_are_means_and_everything_else_keeps_its_bits(family, tied, spare, tmp_path):
    used = write_checkpoint(tmp_path / "model", family, tied=tied, spare=spare)
    before = load_file(tmp_path / "model" / "model.safetensors")
    size = read_config(tmp_path / "model").text.vocab_size
    write_grown(tmp_path / "model", tmp_path / "grown")
    after = load_file(tmp_path / "grown" / "model.safetensors")
    config = read_config(tmp_path / "grown")
    assert config.text.vocab_size == (size if spare else used + 3)
    tokens = MarkerTokens.of(Processor.from_checkpoint(tmp_path / "grown", max_prompt_tokens=10))
    assert sorted([tokens.marker, tokens.yes, tokens.no]) == [used, used + 1, used + 2]

    tables = table_names(config)
    assert len(tables) == 2 - tied and after.keys() == before.keys()
    old = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    for name, x in after.items():
        assert x.dtype == before[name].dtype == "bfloat16"
        if name not in tables:
            assert x.tobytes() == before[name].tobytes(), name
            continue
        assert x[:used].tobytes() == before[name][:used].tobytes()
        rows = before[name].astype(np.float32)
        np.testing.assert_array_equal(x[tokens.marker], rows[:used].mean(0).astype("bfloat16"))
        for token, text in ((tokens.yes, "Yes"), (tokens.no, "No")):
            np.testing.assert_array_equal(x[token], rows[old.encode(text).ids].mean(0).astype("bfloat16"))
        assert x[used + 3 :].tobytes() == before[name][used + 3 :].tobytes()
        assert np.any(x[tokens.yes] != x[tokens.no])  # else frozen rows could never tell them apart

    theirs = AutoConfig.from_pretrained(tmp_path / "grown").get_text_config()
    assert theirs.vocab_size == config.text.vocab_size
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert tokenizer("Yesterday<prm> No", add_special_tokens=False).input_ids[-1] == tokens.no
    assert "<prm>" not in tokenizer.decode([tokens.marker], skip_special_tokens=True)
    plain = "how many cells? Yesterday 12. Nobody, noYes"  # words that only hold the new tokens
    assert old.encode(plain).ids == tokenizer(plain, add_special_tokens=False).input_ids


def test_a_run_makes_its_base_once_and_of_one_checkpoint_only(tmp_path):
    write_tiny_checkpoint(tmp_path / "model", RandomModelConfig(family="qwen2", **SMALL))
    run = tmp_path / "run"
    run.mkdir()
    base = open_base(run, tmp_path / "model")
    assert base == run / "base" and open_base(run / "other", base) == base  # it has the marker
    written = (base / "config.json").stat().st_mtime_ns
    assert open_base(run, tmp_path / "model") == base and (base / "config.json").stat().st_mtime_ns == written

    shutil.rmtree(tmp_path / "model")
    write_tiny_checkpoint(tmp_path / "model", RandomModelConfig(family="qwen2", seed=1, **SMALL))
    (run / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="started from another checkpoint than .*/model holds now"):
        open_base(run, tmp_path / "model")
    shutil.rmtree(run / "checkpoints")
    open_base(run, tmp_path / "model")  # nothing was trained: it is made again
    assert (base / "config.json").stat().st_mtime_ns > written
    assert "model.safetensors" in json.loads((base / BASE_FILE).read_text())

    (base / BASE_FILE).unlink()
    with pytest.raises(UserError, match="base holds a checkpoint that `prm train` did not write"):
        open_base(run, tmp_path / "model")
    shutil.rmtree(base)
    (run / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="base is gone, which the run started from"):
        open_base(run, tmp_path / "model")
