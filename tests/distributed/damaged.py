"""Run a recipe, change a bit of the last shard of rank 1, run again, and once more with run.skip_damaged: damaged.py
RECIPE.yaml"""

import sys
from pathlib import Path

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.errors import CheckpointError
from vlm_r1.rl.loop import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, world = load_config(sys.argv[1]), processes.start()
    run_dir = train(recipe)
    final = (run_dir / "final" / "model.safetensors").read_bytes()
    if world.is_main:
        file = Path(run_dir / f"checkpoint-{recipe.run.steps}" / "shard-00002-model-00001-of-00001.safetensors")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    world.barrier()
    try:
        train(recipe)
    except CheckpointError as error:
        print(f"refused: {error}", flush=True)
    train(load_config(sys.argv[1], ["run.skip_damaged=true"]))
    if world.is_main:
        print("same" if (run_dir / "final" / "model.safetensors").read_bytes() == final else "other", flush=True)
    processes.stop()
