"""Copied as `sitecustomize.py` into an environment with CPU torch and torchvision's wheel, which is built for CUDA.

torchvision looks up two of its compiled operators when it is imported. They are declared first (no image model calls
them), so that its Python part loads: in every process, because vLLM starts several.
"""

import importlib.abc
import sys


class _DeclareFirst(importlib.abc.MetaPathFinder):
    """Finds nothing: it only sees when torchvision is asked for."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.declare_first = self  # a library's operators go with it
        return None


sys.meta_path.insert(0, _DeclareFirst())
