"""Make a model of 100 M parameters, or load it on several processes and note their memory.

load_large.py make FOLDER | load_large.py load FOLDER OUT.json
"""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import torch

from vlm_r1.config import ModelConfig, PromptConfig
from vlm_r1.distributed import processes
from vlm_r1.distributed.loading import open_policy

TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 10, "num_attention_heads": 12}
TEXT |= {"num_key_value_heads": 4, "head_dim": 64, "initializer_range": 0.02}
TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 8, 8]}}
TEXT["rope_parameters"]["mrope_interleaved"] = True
VISION = {"depth": 4, "hidden_size": 384, "intermediate_size": 1536, "num_heads": 6, "patch_size": 8}
VISION |= {"spatial_merge_size": 2, "out_hidden_size": 768, "num_position_embeddings": 144}
VISION["deepstack_visual_indexes"] = [1, 2]


def make(folder: Path) -> None:
    """Random weights in the published layout."""
    from vlm_r1.models.scratch import build_scratch
    from vlm_r1.runtime.model_folder import save_model

    settings = {"model_type": "qwen3_vl", "vocab_size": 1000, "text_config": TEXT, "vision_config": VISION}
    model, processor = build_scratch(settings, 0)
    folder.mkdir(parents=True)
    save_model(folder, model, processor, PromptConfig())


def private_bytes() -> int:
    """Memory of this process that it shares with nobody: files that are mapped are the page cache's."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) * 1024


def load(folder: Path, out: Path) -> None:
    """Load on all processes; write what each had before, and had at most."""
    world = processes.start()
    open_policy(ModelConfig(path="tiny", precision="float32"), PromptConfig(), world, prepare=lambda family: None)
    world.barrier()
    idle = peak = private_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, private_bytes())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    config = ModelConfig(path=str(folder), precision="float32")
    loaded = open_policy(config, PromptConfig(), world, prepare=lambda family: None)
    world.barrier()
    done.set()
    thread.join()
    found = world.gather({"idle": idle, "peak": peak, "after": private_bytes(), "pid": os.getpid()})
    if world.is_main:
        copy = 4 * sum(p.numel() for p in loaded.policy.parameters())
        out.write_text(json.dumps({"copy": copy, "processes": found}))
    processes.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        load(Path(sys.argv[2]), Path(sys.argv[3]))
