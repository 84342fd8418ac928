"""The command line. Each command imports what it runs inside itself: `--help` and a typo answer without torch."""

from vlm_r1.cli import init, train, plan, check_engine, evaluate, play, view, runs, export, serve, lab, data  # isort: skip  # order of --help
from vlm_r1.cli.app import app, main

__all__ = [
    "app",
    "check_engine",
    "data",
    "evaluate",
    "export",
    "init",
    "lab",
    "main",
    "plan",
    "play",
    "runs",
    "serve",
    "train",
    "view",
]
