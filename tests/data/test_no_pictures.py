"""Prompts of models that read no pictures, against their tokenizer's chat template; and rows that are refused."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.commands import TINY, prompt_row, write_rows
from helpers.support import picture
from transformers import AutoTokenizer

from mmeureka_jax.data.check import check_problems
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.data.prompts import apply_prompt_style
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.models.batch import collate
from mmeureka_jax.rewards.rules.format import follows_format
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

# As that of Qwen2.5 does: contents are texts, and a system turn is made up.
TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helper.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As on the hub: the template is in tokenizer_config.json, and there is no file of an image processor."""
    folder = tmp_path_factory.mktemp("text") / "model"
    write_tiny_checkpoint(folder, replace(TINY, family="qwen2"))
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    assert not list(folder.glob("*processor_config.json"))
    return folder


def make(folder, prompt_style="plain"):
    return Processor.from_checkpoint(folder, prompt_style=prompt_style, max_prompt_tokens=500)


def test_what_the_template_writes_of_a_response_is_known(folder, tmp_path):
    """As templates of models that always reason do."""
    assert make(folder).response_prefix == ""
    thinking = shutil.copytree(folder, tmp_path / "model")
    (thinking / "chat_template.jinja").write_text(TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}"))
    processor = make(thinking)
    assert processor.response_prefix == "<think>\n"
    assert follows_format(processor.response_prefix + "so 2\n</think>\n<answer> $2$ </answer>", style="instruct") == 1
    assert pickle.loads(pickle.dumps(processor)).response_prefix == "<think>\n"


def turns(*texts):
    """A problem; with more than one text the first is the system's."""
    roles = ("system", "user", "assistant", "user") if len(texts) > 1 else ("user",)
    messages = ({"role": r, "content": [{"type": "text", "text": t}]} for r, t in zip(roles, texts, strict=False))
    return Problem("p", tuple(messages), (), "1", {})


@pytest.mark.parametrize("style", ["plain", "instruct", "zero", "cpgd"])
@pytest.mark.parametrize("texts", [["What is 1 + 1?"], ["Be brief.", "1 + 1?", "2", "Größe von ∠ABC? <image>"]])
def test_prompts_equal_those_of_the_tokenizer(folder, style, texts):
    """A picture's token in a text is a token as any other: this model knows no pictures."""
    item = turns(*texts)
    prompt = make(folder, style)(item)
    messages = [
        {"role": message["role"], "content": "".join(part["text"] for part in message["content"])}
        for message in apply_prompt_style(item.messages, style)
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    np.testing.assert_array_equal(prompt.tokens, expected)
    np.testing.assert_array_equal(prompt.positions, np.tile(np.arange(len(expected)), (3, 1)))
    assert prompt.next_position == len(expected) and (prompt.image_index == -1).all()
    assert make(folder, style).measure(item) == (len(expected), 0)


def test_batches_have_no_place_for_patches(folder):
    processor = make(folder)
    batch = collate([processor(turns("What is 1 + 1?")), processor.filler()], 64, 0)
    assert batch.images.patches.size == 0 and batch.images.patches.shape[:2] == (2, 0)
    assert batch.length[1] == 1 and batch.next_position[1] == 1


def test_rows_with_a_picture_are_refused_by_id(folder, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(40, 40).read_bytes())
    rows = [prompt_row("good", "1 + 1 ?", answer="2"), prompt_row("seen", "how many?", "a.png", answer="2")]
    source = open_problems(str(write_rows(tmp_path / "rows.jsonl", rows)))
    processor = make(folder)
    for call in (processor, processor.measure):
        with pytest.raises(RowError, match="problem 'seen': image .*a.png: the model reads text alone; drop the row"):
            call(source[1])
    report = check_problems(source, processor, accuracy=None, progress=False, cache_dir=tmp_path)
    assert report.usable == [0] and report.max_windows == 0
    (rejected,) = report.rejected
    assert (rejected.id, rejected.row, rejected.kind) == ("seen", 1, "picture for a text-only model")
