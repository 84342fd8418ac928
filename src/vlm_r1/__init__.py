"""VLM-R1: reinforcement learning with checkable rewards for vision-language models."""

__version__ = "0.1.0"
