"""Run recipes of served engines, each process with one of its own: run_ahead.py [--lose STEP] RECIPE.yaml ...

No engine may take over weights while that of another process still answers. With --lose, the engine of the last rank
is lost at that step (from 0), after one group.
"""

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from apart import Apart

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.errors import EngineError
from vlm_r1.rl import loop

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Together(Apart):
    """Says in a file that it answers, and looks at those of the others before it takes over weights."""

    lose: int | None = None

    def __init__(self, recipe, loaded, start):
        self.folder = Path(recipe.run.dir).parent
        super().__init__(recipe, loaded, start)

    def generate(self, prompts, sampling, *, n):
        mine = self.folder / f"answering-{RANK}"
        mine.touch()
        time.sleep(0.05 * RANK)
        try:
            for number, group in enumerate(super().generate(prompts, sampling, n=n)):
                if RANK == SIZE - 1 and number == 1 and sampling.seed and sampling.seed[-1] == self.lose:
                    raise EngineError("no server has answered for 900 s")
                yield group
        finally:
            mine.unlink()

    def sync(self, weights, version):
        others = [str(file) for file in self.folder.glob("answering-*")]
        assert not others, others
        super().sync(weights, version)


if __name__ == "__main__":
    torch.set_num_threads(1)
    loop.open_engine = lambda recipe, loaded, world, start: nullcontext(Together(recipe, loaded, start))
    files = sys.argv[1:]
    if files[0] == "--lose":
        Together.lose, files = int(files[1]), files[2:]
    for file in files:
        try:
            loop.train(load_config(file))
        except EngineError as error:
            print(f"error: {error}", file=sys.stderr)
            processes.stop()
            sys.exit(2)
    processes.stop()
