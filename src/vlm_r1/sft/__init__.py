"""The supervised baseline, on the same samples and prompts."""
