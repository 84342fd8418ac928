"""Which types a run keeps things in: shard_types.py RECIPE.yaml OUT.json"""

import json
import sys
from pathlib import Path

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.rl import loop
from vlm_r1.rl.step import Trainer
from vlm_r1.rollout.native import NativeEngine

found: dict = {"sampled with": set()}


def watch() -> None:
    """Look at parameters while sampling, at gradients and moments at the optimizer's step."""
    step, generate = Trainer.step, NativeEngine.generate

    def generated(self, *args, **kwargs):
        found["sampled with"] |= {str(p.dtype) for p in self.loaded.policy.parameters()}
        return generate(self, *args, **kwargs)

    def stepped(self, batch, number):
        parameters = dict(self.session.policy.named_parameters())
        before = {n: p.to_local().clone() for n, p in parameters.items()}
        inner = self.session.optimizer.step

        def optimized(*args, **kwargs):
            found["gradients"] = {str(p.grad.dtype) for p in parameters.values() if p.grad is not None}
            return inner(*args, **kwargs)

        self.session.optimizer.step = optimized
        tally = step(self, batch, number)
        self.session.optimizer.step = inner
        found["parameters"] = {str(p.dtype) for p in parameters.values()}
        state = self.session.optimizer.state
        found["state"] = {str(v.dtype) for values in state.values() for v in values.values()}
        moved = [float((p.to_local() != before[n]).float().mean()) for n, p in parameters.items()]
        found["moved"] = sum(moved) / len(moved)
        return tally

    Trainer.step, NativeEngine.generate = stepped, generated


if __name__ == "__main__":
    torch.set_num_threads(1)
    watch()
    loop.train(load_config(sys.argv[1]))
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in found.items()}
    Path(sys.argv[2]).write_text(json.dumps(plain))
    processes.stop()
