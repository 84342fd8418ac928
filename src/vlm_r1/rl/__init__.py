"""Reinforcement learning: scores become advantages, a loss and a step."""
