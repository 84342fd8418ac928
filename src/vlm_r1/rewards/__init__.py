"""Rewards: `(Sample, Answer)` becomes a `Score`."""
