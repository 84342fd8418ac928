"""Run recipes in which the loss of rank 1 is NaN in steps 2 and 3: diverge.py RECIPE.yaml..."""

import sys

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.errors import DivergenceError
from vlm_r1.rl.loop import train
from vlm_r1.rl.step import Trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    now, step, loss = [0], Trainer.step, Trainer.loss

    def noted(self, batch, number):
        now[0] = number + 1
        return step(self, batch, number)

    def broken(self, x, sums):
        wrong = self.session.world.rank == 1 and now[0] in (2, 3)
        return loss(self, x, sums) * (torch.nan if wrong else 1)

    Trainer.step, Trainer.loss = noted, broken
    for file in sys.argv[1:]:
        try:
            train(load_config(file))
        except DivergenceError as error:
            print(f"lost: {error}", flush=True)
    processes.stop()
