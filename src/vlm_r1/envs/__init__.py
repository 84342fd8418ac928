"""Environments: what a model may ask while it answers. Plugins need `Reply`, `Seen` and `function_tool`."""

from vlm_r1.envs.tools import Reply, Seen, function_tool

__all__ = ["Reply", "Seen", "function_tool"]
