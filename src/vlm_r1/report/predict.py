"""One answer about one image as a person reads it: printed, and drawn into the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlm_r1.data.draw import draw_boxes
from vlm_r1.errors import UserError
from vlm_r1.eval.predict import ask
from vlm_r1.prompts.parse import asked_in
from vlm_r1.records import Answer, LabelledBox
from vlm_r1.report.findings import box_words


def predict(
    model: str,
    image: Path,
    question: str,
    out: Path,
    task: str = "rec",
    template: str | None = None,
    *,
    engine: Literal["native", "vllm"] = "native",
    servers: Sequence[str] = (),
    tools: Sequence[str] = (),
) -> Answer:
    """`vlm-r1 predict`: print thinking and answer, and write the image with the answer's boxes to `out`."""
    sample, answer = ask(model, image, question, task, template, engine=engine, servers=servers, tools=tools)
    for call in answer.calls:
        shown = f"{len(call.images)} images" if len(call.images) != 1 else "1 image"
        told = call.failure or (f"box {box_words(LabelledBox(box=call.box))}, {shown}" if call.box else shown)
        print(f"call:   {asked_in(call.text)}\n        {told}{'; ' if call.reply else ''}{call.reply}")
    print(f"think:  {answer.think if answer.think is not None else '(none)'}")
    print(f"answer: {answer.text if answer.text is not None else answer.raw}")
    if answer.failure is not None:
        print(f"        which cannot be read as an answer: {answer.failure.kind} {answer.failure.detail}".rstrip())
    boxes = answer.value if isinstance(answer.value, tuple) else ()
    for found in boxes:
        print(f"box:    {box_words(found)} in pixels of the image")
    named = [b if b.label else LabelledBox(box=b.box, label=question if len(boxes) == 1 else "") for b in boxes]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_boxes(sample.images[0].open(), predicted=named).save(out)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out {out}: cannot be written ({error}); name a .png or .jpg file in a writable folder"
        ) from None
    print(f"drawn:  {out}")
    return answer
