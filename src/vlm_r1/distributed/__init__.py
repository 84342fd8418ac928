"""Processes, sharding, reductions, distributed checkpoints: the only place that imports torch.distributed."""
