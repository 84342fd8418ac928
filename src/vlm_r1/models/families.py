"""The registry of model families: `config.model_type` -> family."""

from __future__ import annotations

from vlm_r1.models.family import Family
from vlm_r1.models.gemma3 import Gemma3
from vlm_r1.models.glm import Glm
from vlm_r1.models.idefics import Idefics3
from vlm_r1.models.internvl import InternVL
from vlm_r1.models.llava_next import LlavaNext
from vlm_r1.models.llava_onevision import LlavaOnevision
from vlm_r1.models.paligemma import PaliGemma
from vlm_r1.models.qwen_vl import Qwen3VLMoe, Qwen25VL, Qwen35, QwenVL

FAMILIES: dict[str, type[Family]] = {
    "gemma3": Gemma3,
    "paligemma": PaliGemma,
    "qwen3_vl": QwenVL,
    "qwen2_5_vl": Qwen25VL,
    "qwen2_vl": QwenVL,
    "qwen3_vl_moe": Qwen3VLMoe,
    "qwen3_5": Qwen35,
    "qwen3_5_moe": Qwen35,
    "glm4v": Glm,
    "glm4v_moe": Glm,
    "glm46v": Glm,
    "internvl": InternVL,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOnevision,
    "smolvlm": Idefics3,
    "idefics3": Idefics3,
}
