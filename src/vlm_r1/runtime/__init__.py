"""Processes, devices, checkpoints and seeds."""
