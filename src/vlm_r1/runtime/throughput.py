"""What people compare: tokens a second, FLOP/s and their share of a GPU's peak (MFU), the phases' shares of a step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_r1.distributed.processes import World
from vlm_r1.models.flops import Arithmetic, Work
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.packing import PrefixGroup
from vlm_r1.records import VisionInput
from vlm_r1.runtime.tally import Tally

PEAKS: tuple[tuple[str, float], ...] = (
    ("B300", 2250e12),
    ("B200", 2250e12),
    ("GB200", 2500e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H800", 989e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 150e12),
    ("A30", 165e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A6000", 155e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 5090", 209e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
"""Words of a GPU's name -> its dense bfloat16 FLOP/s with float32 accumulation (NVIDIA's data sheets); the first row
counts of which all words are in the name."""


def peak_flops(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """FLOP/s that a GPU reaches at most in matrix products of a precision; None where that is not known.

    TF32 runs at half of bfloat16's; float32 without it does not use the tensor cores, and has no entry.

    >>> peak_flops("NVIDIA H100 PCIe", torch.bfloat16), peak_flops("NVIDIA A100-SXM4-80GB", torch.float32)
    (756000000000000.0, None)
    """
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    found = next((peak for key, peak in PEAKS if set(key.split()) <= words), None)
    if found is None or dtype == torch.bfloat16:
        return found
    return found / 2 if dtype == torch.float32 and tf32 else None


@dataclass(frozen=True, slots=True)
class Shape:
    """What is counted of a group: its prompt, its images, and its completions' tokens, of which `contexts` are not
    scored. `repeated` are turns that another completion has too: where they begin and end, and how much is scored."""

    token_ids: Sequence[int] | Tensor
    images: Sequence[VisionInput]
    lengths: Sequence[int]
    contexts: Sequence[int] = ()
    repeated: Sequence[tuple[int, int, int]] = ()

    @classmethod
    def of(cls, group: PrefixGroup) -> Shape:
        """That of a prefix group."""
        lengths = [b.n_tokens + 1 for b in group.completions]
        contexts = [n - b.n_scored for n, b in zip(lengths, group.completions, strict=True)]
        seen, repeated = set(), []
        for completion in group.completions:
            start = len(group.token_ids)
            for path, turn in zip(completion.paths, completion.turns, strict=True):
                stop = start + len(turn.token_ids)
                if path in seen:
                    repeated.append((start, stop, turn.written - turn.context))
                seen.add(path)
                start = stop
        return cls(group.token_ids, group.all_images, lengths, contexts, repeated)


class Throughput:
    """Counts the arithmetic of steps, and makes rates of what all processes did: `count`, then `rates`.

    Shared arithmetic is what must be computed: the image and the prompt of a group once in the rollout and once in each
    pass of the update, every token of its completions once each. Padded arithmetic is what a row of its own for each
    completion computes, for the same update.
    """

    def __init__(self, loaded: LoadedPolicy, world: World) -> None:
        self.arithmetic, self.size = Arithmetic(loaded.family), world.size
        self.peak = None
        if world.device.type == "cuda":
            tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
            name = torch.cuda.get_device_name(world.device)
            self.peak = peak_flops(name, loaded.policy.compute_dtype, tf32=tf32)

    def count(
        self,
        tally: Tally,
        groups: Sequence[Shape],
        trained: Sequence[Shape],
        *,
        rollout: bool,
        steps: int = 1,
        forwards: int = 0,
    ) -> None:
        """Add the FLOPs of this process's step: `groups` are its own, `trained` those that took part in the update.

        The update is `steps` forward and backward passes, and `forwards` passes of a reference. Of features that are
        cached, the share of `tally`'s hit rate was not computed.
        """
        hits, lookups = tally.means.get("vision_cache/hit_rate", (0.0, 0.0))
        encoded = 1 - hits / lookups if lookups else 1.0

        def update(work: Work) -> float:
            return steps * (work.forward + work.backward) + forwards * work.forward

        for one in trained:
            tally.total("flops/update", update(self._shared(one, encoded)))
        for one in groups:
            padded = self.arithmetic.padded(one.token_ids, one.images, one.lengths)
            tally.total("flops/update_padded", update(padded))
            if rollout:
                tally.total("flops/rollout", self._shared(one, encoded).forward)

    def _shared(self, one: Shape, encoded: float) -> Work:
        found = self.arithmetic.shared(one.token_ids, one.images, one.lengths, one.contexts, encoded)
        for start, stop, scored in one.repeated:
            found = found + -1 * (self.arithmetic.tokens(start, stop) + self.arithmetic.predictions(scored))
        return found

    def rates(self, values: dict[str, float], group_size: int | None = None) -> dict[str, float]:
        """The metrics of a step from those of all processes, of which the counted FLOPs are taken out.

        Tokens are those of all processes a second of the phase that they belong to, FLOP/s those of one process.
        """
        flops = {name: values.pop(f"flops/{name}", 0.0) for name in ("rollout", "update", "update_padded")}
        seconds = {n.removeprefix("time/").removesuffix("_s"): v for n, v in values.items() if n.startswith("time/")}
        step, update = seconds.pop("step"), seconds["update"]
        found = {f"time/{phase}_share": value / step for phase, value in seconds.items()}
        prompts, completions = values["tokens/prompt"], values["tokens/answer"]
        trained = values.get("tokens/update_prompt", prompts) + values.get("tokens/update_answer", completions)
        if group_size is not None:
            if rollout := values.get("rollout/generate_s", seconds["rollout"]):
                found["perf/prompt_tokens_per_s"] = prompts / rollout
                found["perf/completion_tokens_per_s"] = completions / rollout
            found["perf/throughput"] = (group_size * prompts + completions) / step / self.size
        found["perf/trained_tokens_per_s"] = trained / update
        per_second = {
            "": flops["update"] / update,
            "_padded": flops["update_padded"] / update,
            "_step": (flops["rollout"] + flops["update"]) / step,
        }
        for name, value in per_second.items():
            if name != "_padded":
                found[f"perf/tflops{name}"] = value / self.size / 1e12
            if self.peak is not None:
                found[f"perf/mfu{name}"] = value / self.size / self.peak
        return found
