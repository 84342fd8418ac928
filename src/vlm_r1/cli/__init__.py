"""The command line. Each command imports what it runs inside itself: `--help` and a typo answer without torch."""

from vlm_r1.cli import train, plan, evaluate, play, view, runs, export, serve, data  # isort: skip  # the order of --help
from vlm_r1.cli.app import app, main

__all__ = ["app", "data", "evaluate", "export", "main", "plan", "play", "runs", "serve", "train", "view"]
