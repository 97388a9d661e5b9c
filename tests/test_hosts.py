"""What the hosts of a run tell one another; several processes are joined in training/test_distributed.py."""

from __future__ import annotations

import numpy as np
import pytest

from mmeureka_jax import hosts
from mmeureka_jax.errors import UserError


def test_one_host_alone():
    np.testing.assert_array_equal(hosts.every_host([1, 2]), [[1, 2]])
    assert hosts.max_over_hosts(3) == 3 and hosts.sum_over_hosts([1.0, 2.5]) == [1.0, 2.5]
    hosts.raise_together(None)
    with pytest.raises(UserError, match="^no space$"):
        hosts.raise_together("no space")


@pytest.mark.parametrize("ours", ["", "ours is longer"])
def test_all_hosts_raise_the_message_of_the_first_that_has_one(monkeypatch, ours):
    def with_another(own):
        own = np.asarray(own)
        theirs = np.zeros_like(own)
        if own.ndim == 0:
            return np.stack([np.asarray(len("theirs")), own])
        theirs[:6] = np.frombuffer(b"theirs", np.uint8)
        return np.stack([theirs, own])

    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "every_host", with_another)
    with pytest.raises(UserError, match="^theirs$"):
        hosts.raise_together(ours)


def test_each_row_comes_from_the_host_that_sees_to_it(monkeypatch):
    """Hosts 0 and 2 have the first share, 1 and 3 the second; they take turns."""
    of_hosts = np.arange(4)[:, None] * 10 + np.arange(3)
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 4)
    monkeypatch.setattr(hosts, "every_host", lambda own: of_hosts)
    result = hosts.rows_of_all({"a": of_hosts[3]}, ((0, 2), (1, 3)))
    assert result["a"].tolist() == [0, 21, 2, 10, 31, 12]
