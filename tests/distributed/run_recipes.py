"""Run recipes one after the other on the processes that torchrun started: run_recipes.py RECIPE.yaml ..."""

import sys

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.rl import loop
from vlm_r1.sft import train as sft

if __name__ == "__main__":
    torch.set_num_threads(1)
    for file in sys.argv[1:]:
        recipe = load_config(file)
        (sft.train if recipe.method == "sft" else loop.train)(recipe)
    processes.stop()
