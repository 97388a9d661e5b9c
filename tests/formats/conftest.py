"""Checkpoints that the tests of this folder share."""

import shutil

import pytest
from helpers.torch_checkpoints import make_checkpoint

from mmeureka_jax.formats import hugging_face


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture(params=["small", "large"])
def leaf_size(request, monkeypatch):
    """Small leaves are put together on the host, large ones on the devices. Here all are small, or none counts so."""
    if request.param == "large":
        monkeypatch.setattr(hugging_face, "_SMALL_LEAF_BYTES", 0)
    return request.param
