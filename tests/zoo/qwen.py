"""Qwen2.5-VL and Qwen3-VL."""

from functools import partial

from support import save_tiny

from zoo import Entry

ENTRIES = {name: Entry(build=partial(save_tiny, family=name)) for name in ("qwen2_5_vl", "qwen3_vl")}
