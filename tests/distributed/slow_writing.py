"""Run a recipe whose checkpoints are written slowly, so that the next step changes the weights meanwhile."""

import sys
import time

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.distributed.checkpoints import CheckpointWriter
from vlm_r1.rl.loop import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    write = CheckpointWriter._write

    def slowly(self, tensors, aside):
        time.sleep(0.5)
        return write(self, tensors, aside)

    CheckpointWriter._write = slowly
    train(load_config(sys.argv[1]))
    processes.stop()
