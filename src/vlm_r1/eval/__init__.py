"""Evaluation on held-out questions."""
