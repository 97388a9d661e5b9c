"""A loss of the user's own file: what it is given, and how one that cannot be used is refused."""

import numpy as np
import pytest
from helpers.loss_cases import random_batch

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rl.losses import make_policy_loss

OWN_LOSS = """
from mmeureka_jax.rl.losses import TokenLoss, pg

def scaled(log_probs, old_log_probs, advantages, response_mask, *, drift_cap, mine=3.0):
    base = pg(log_probs, old_log_probs, advantages, response_mask)
    loss = drift_cap * mine * base.loss
    return TokenLoss(loss=loss, parts={"policy": loss}, diagnostics={})

def needs(log_probs, old_log_probs, advantages, response_mask, *, nothing_of_the_kind): ...
def null(log_probs, old_log_probs, advantages, response_mask, *, clip_epsilon_low): ...
def too_few(log_probs, old_log_probs): ...
"""


def test_a_loss_from_a_file(tmp_path):
    (tmp_path / "own_loss.py").write_text(OWN_LOSS)
    config = load_config(None, [f"rl.loss={tmp_path}/own_loss.py:scaled", "rl.drift_cap=0.5"]).rl
    batch = random_batch()
    own = make_policy_loss(config)(*batch)
    plain = make_policy_loss(RLConfig(loss="pg"))(*batch)
    np.testing.assert_allclose(own.loss, 1.5 * plain.loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_loss.py:needs", "needs a setting 'nothing_of_the_kind': rl.nothing_of_the_kind is no key of rl"),
        ("own_loss.py:null", "needs a setting 'clip_epsilon_low': rl.clip_epsilon_low is null; set it, or give"),
        ("own_loss.py:too_few", "rl.loss: too_few of .*own_loss.py: too many positional arguments; expected function"),
        ("own_loss.py:nowhere", "rl.loss: .*own_loss.py has no function 'nowhere'"),
        ("other.py:scaled", "rl.loss=.* there is no file .*other.py"),
    ],
)
def test_a_loss_that_cannot_be_used_is_named(tmp_path, name, message):
    (tmp_path / "own_loss.py").write_text(OWN_LOSS)
    with pytest.raises(UserError, match=message):
        make_policy_loss(RLConfig(loss=f"{tmp_path}/{name}"))
