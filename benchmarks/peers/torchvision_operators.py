"""Import this before transformers: then torchvision can be imported next to a torch that it was not built for.

That is how the usual torchvision is next to a CPU build of torch: its compiled operators cannot be loaded, and it ends
on the first that it describes. The two are declared here. Pictures are only resized, which uses neither. Where there is
no torchvision nothing is done: transformers needs it only for its processors.
"""

from __future__ import annotations

import contextlib

import torch

with contextlib.suppress(ModuleNotFoundError):
    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for _name in ("nms", "qnms"):
            _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
