"""Run recipes one after the other on the processes that torchrun started: run_recipes.py RECIPE.yaml ...

With --no-prefetch first, no batch is read ahead.
"""

import sys

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.rl import loop
from vlm_r1.runtime.prefetch import Prefetcher
from vlm_r1.sft import train as sft

if __name__ == "__main__":
    torch.set_num_threads(1)
    files = sys.argv[1:]
    if files[0] == "--no-prefetch":
        Prefetcher.prefetch = lambda self, count: None
        files = files[1:]
    for file in files:
        recipe = load_config(file)
        (sft.train if recipe.method == "sft" else loop.train)(recipe)
    processes.stop()
