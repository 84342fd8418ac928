"""Annotation files in their original layouts become JSONL: one file a format."""
