"""Prompts: a `Sample` becomes chat messages; what the model wrote becomes an `Answer`."""
