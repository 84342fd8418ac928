"""Run a recipe whose rank 1 cannot write any more after some checkpoints: full_disk.py RECIPE.yaml COUNT"""

import resource
import signal
import sys

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.distributed.checkpoints import CheckpointWriter
from vlm_r1.rl.loop import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    save, allowed = CheckpointWriter.save, int(sys.argv[2])

    def limited(self, step, *args):
        if self.world.rank == 1 and step > allowed:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        save(self, step, *args)

    CheckpointWriter.save = limited
    train(load_config(sys.argv[1]))
    processes.stop()
