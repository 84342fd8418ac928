"""Rollout: a `Prompt` becomes a `RolloutGroup`."""
