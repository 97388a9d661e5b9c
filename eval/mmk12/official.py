"""MM-EUREKA's own rule, that of its training: the authors give MMK12 no other rule without a judge model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmeureka_jax.rewards import upstream


def judge(response: str, row: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a response is right, and the text that was compared, without spaces around it; None where it is empty.

    Source: `accuracy_reward_func`, github.com/ModalMinds/MM-EUREKA, examples/scripts/reward_func_qwen_instruct.py.
    """
    text = upstream.extract(response, "instruct")
    return upstream.compare(text, row["answer"], "instruct") > 0.5, (text or "").strip() or None
