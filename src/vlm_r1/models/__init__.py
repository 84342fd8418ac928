"""Models: chat messages become tensors; tensors become log-probabilities."""
