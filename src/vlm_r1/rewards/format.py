"""Did the model keep to the answer format?"""

from __future__ import annotations

from vlm_r1.prompts.parse import FAILURE_KINDS, extract_blocks
from vlm_r1.records import Answer, Sample, Score


def format_reward(sample: Sample, answer: Answer, *, strict: bool = True) -> Score:
    """1 where the text has the R1 shape, else 0; range {0, 1}.

    Strict: exactly one `<think>` block, then exactly one `<answer>` block, and only white space around them (the
    reference's `format`, which lets further tags pass inside the blocks). Lenient (`strict: false`): some complete
    `<answer>` block. Source: DeepSeek-R1's format reward, as VLM-R1 uses it.
    """
    kept = answer.well_formed if strict else answer.text is not None
    if kept:
        return Score(total=1.0, parts={"format": 1.0})
    fault = extract_blocks(answer.raw).fault
    return Score(total=0.0, parts={"format": 0.0}, notes=(FAILURE_KINDS[fault],) if fault else ())
