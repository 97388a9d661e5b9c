"""The shapes of released models: they add up to what is published, and every recipe can be planned from them."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import pytest

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import MeshConfig, ModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import read_config, stored_shapes
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.setup.released_models import RELEASED_MODELS, write_released_model


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_shapes_add_up_to_the_published_parameters(name, tmp_path):
    sizes = read_config(write_released_model(name, tmp_path / "model"))
    counted = sum(math.prod(shape) for shape in stored_shapes(sizes).values())
    published = RELEASED_MODELS[name].parameters
    # A whole number is exact, a rounded one good to its three digits.
    assert counted == published if isinstance(published, int) else math.isclose(counted, published, rel_tol=0.01)


def test_every_recipe_names_a_model_that_is_here():
    others = {"ablations", "companions"}  # sweeps, and experiments without a model
    recipes = [file for file in Path("configs").glob("**/*.yaml") if not others & set(file.parts)]
    models = [load_config(str(recipe), []).model for recipe in recipes]
    names = {model.checkpoint for model in models if model.random is None and not model.checkpoint.startswith("runs/")}
    assert len(names) >= 5 and names <= set(RELEASED_MODELS)


def test_a_policy_is_opened_from_its_shapes_alone(tmp_path):
    folder = write_released_model("Qwen/Qwen2.5-VL-7B-Instruct", tmp_path / "model")
    opened = open_policy(folder, ModelConfig(), MeshConfig(), devices=jax.devices()[:1])
    assert opened.policy.config.eos_token_ids == (151645, 151643)
    internvl = read_config(write_released_model("OpenGVLab/InternVL2_5-8B", tmp_path / "internvl"))
    assert internvl.text.vocab_size == 92553 and internvl.image_token_id == 92546 and 92542 in internvl.eos_token_ids


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="somebody/model: its sizes are not known here"):
        write_released_model("somebody/model", tmp_path)
