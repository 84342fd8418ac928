"""What each process holds between two steps: hold.py RECIPE.yaml OUT.json"""

import json
import sys
from pathlib import Path

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.distributed.sharding import local_bytes
from vlm_r1.rl import loop, reference
from vlm_r1.rl.step import Trainer

held: dict[str, int] = {}
references = []


def watch() -> None:
    """Measure before and after the optimizer's step, whatever the trainer does between."""
    step, opened = Trainer.step, reference.open_policy

    def noted(*args, **kwargs):
        references.append(opened(*args, **kwargs))
        return references[-1]

    reference.open_policy = noted
    references.clear()

    def measured(self, batch, number):
        optimizer = self.session.optimizer
        inner = optimizer.step

        def stepped(*args, **kwargs):
            parameters = list(self.session.policy.parameters())
            held["gradients"] = local_bytes(p.grad for p in parameters)
            return inner(*args, **kwargs)

        optimizer.step = stepped
        tally = step(self, batch, number)
        optimizer.step = inner
        parameters = list(self.session.policy.parameters())
        held["whole"] = sum(p.numel() * p.element_size() for p in parameters)
        held["parameters"] = local_bytes(parameters)
        state = [v for values in optimizer.state.values() for v in values.values() if v.ndim]
        held["state"] = local_bytes(state)
        held["reference"] = local_bytes(references[0].policy.parameters())
        assert all(p.grad is None for p in parameters)
        return tally

    Trainer.step = measured


if __name__ == "__main__":
    torch.set_num_threads(1)
    watch()
    loop.train(load_config(sys.argv[1]))
    world = processes.start()
    everything = world.gather(held)
    if world.is_main:
        Path(sys.argv[2]).write_text(json.dumps(everything))
    processes.stop()
