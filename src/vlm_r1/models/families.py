"""The registry of model families: `config.model_type` -> family."""

from __future__ import annotations

from vlm_r1.models.family import Family
from vlm_r1.models.gemma3 import Gemma3
from vlm_r1.models.glm import Glm
from vlm_r1.models.internvl import InternVL
from vlm_r1.models.qwen_vl import Qwen3VLMoe, Qwen25VL, QwenVL

FAMILIES: dict[str, type[Family]] = {
    "gemma3": Gemma3,
    "qwen3_vl": QwenVL,
    "qwen2_5_vl": Qwen25VL,
    "qwen2_vl": QwenVL,
    "qwen3_vl_moe": Qwen3VLMoe,
    "glm4v": Glm,
    "glm4v_moe": Glm,
    "glm46v": Glm,
    "internvl": InternVL,
}
