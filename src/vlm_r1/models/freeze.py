"""Which parameters are trained: by the modules of each part, never by a substring of a name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vlm_r1.config import TrainConfig
from vlm_r1.errors import ConfigError
from vlm_r1.models.families import FAMILIES
from vlm_r1.models.family import Family, Part
from vlm_r1.models.tower_output import TowerOutput


def freeze(family: Family, train: TrainConfig) -> dict[Part, int]:
    """Set `requires_grad` of every parameter as `train` says; returns the trainable parameters of each part.

    "lora" freezes the part's own weights; adapters are added elsewhere. Blocks whose output nothing reads have no
    gradient: they are frozen, and "last_N" counts from the last one that is read. Raises `ConfigError` for a last_N
    with more blocks than that.
    """
    counts: dict[Part, int] = {}
    for part, parameters in family.parameters().items():
        how = train.how()[part]
        blocks = blocks_of(family, part)
        read = _blocks_read(family, part, len(blocks))
        trained = {id(p) for p in parameters.values()} if how == "full" else set()
        trained -= {id(p) for block in blocks[read:] for p in block.parameters()}
        if how.startswith("last_"):
            blocks = blocks[:read]
            wanted = int(how.removeprefix("last_"))
            if wanted > len(blocks):
                raise ConfigError(
                    f"train.{part}: {how}, but there are {len(blocks)} blocks; use full or a smaller number"
                )
            trained = {id(p) for block in blocks[-wanted:] for p in block.parameters()}
        for parameter in parameters.values():
            parameter.requires_grad_(id(parameter) in trained)
        counts[part] = sum(p.numel() for p in parameters.values() if p.requires_grad)
    return counts


def _blocks_read(family: Family, part: Part, count: int) -> int:
    """How many blocks of a part something reads: LLaVA's connector takes what an earlier block of the tower gives.

    `vision_feature_layer` counts as transformers does, 0 being what goes into the first block.
    """
    layers = getattr(family.model.config, "vision_feature_layer", None)
    if part != "vision" or layers is None:
        return count
    return max(
        layer if layer >= 0 else count + 1 + layer for layer in ([layers] if isinstance(layers, int) else layers)
    )


def blocks_of(family: Family, part: Part) -> list[nn.Module]:
    """The transformer blocks of a part, first to last: the list of modules that holds most of its parameters."""
    mine = {id(p) for p in family.parameters()[part].values()}
    lists = [m for module in family.modules()[part] for m in module.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters() if id(p) in mine), default=()))


def frozen_features(family: Family) -> tuple[list[str], TowerOutput | None] | None:
    """What can be kept of images, as `Policy.cache_features` takes it.

    These are the names of the weights that it depends on, and, where the connector is trained, the way to record the
    tower's output. None where the tower is trained, and for a trained connector of a model without a family of its own:
    the tests hold families alone to it.
    """
    vision, connector = (family.parameters()[part] for part in ("vision", "connector"))  # type: ignore[index]
    if any(p.requires_grad for p in vision.values()):
        return None
    if not any(p.requires_grad for p in connector.values()):
        return [*vision, *connector], None
    if family.model.config.model_type not in FAMILIES:
        return None
    return [*vision], tower_output(family)


def tower_output(family: Family) -> TowerOutput:
    """The way to record and replay what a family's tower hands to its connector."""
    return TowerOutput(family.modules()["connector"], blocks_of(family, "vision"))


def learning_rate_scales(family: Family, rates: Mapping[Part, float | None], base: float) -> dict[int, float]:
    """Parameter identity -> its learning rate over `base`, for parts that have a rate of their own."""
    return {
        id(parameter): rate / base
        for part, parameters in family.parameters().items()
        if (rate := rates.get(part)) is not None
        for parameter in parameters.values()
    }
