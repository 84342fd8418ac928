"""Run recipes one after the other on the processes that torchrun started: run_recipes.py RECIPE.yaml ...

Batches are read ahead, whether there is a core for that or not; with --no-prefetch first, none is.
"""

import sys

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.rl import loop
from vlm_r1.runtime import prefetch
from vlm_r1.sft import train as sft

if __name__ == "__main__":
    torch.set_num_threads(1)
    files = sys.argv[1:]
    ahead = files[0] != "--no-prefetch"
    prefetch.spare_core = lambda world: ahead
    files = files if ahead else files[1:]
    for file in files:
        recipe = load_config(file)
        (sft.train if recipe.method == "sft" else loop.train)(recipe)
    processes.stop()
