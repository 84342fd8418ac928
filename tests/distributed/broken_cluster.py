"""The start-up check on processes that do not share a folder, or have other versions: broken_cluster.py FOLDER HOW"""

import sys
from pathlib import Path

from vlm_r1.distributed import processes
from vlm_r1.distributed.check import check_cluster

if __name__ == "__main__":
    world = processes.start()
    folder, how = Path(sys.argv[1]), sys.argv[2]
    own = folder / str(world.rank) if how == "folders" else folder
    check_cluster(world, own, f"vlm-r1 {world.rank + 1}" if how == "versions" else "vlm-r1 1")
