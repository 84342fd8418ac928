"""Draw the drawings of docs/how-it-works.md: `python docs/make_drawings.py` writes docs/drawings/*.svg.

The attention drawing is made from the masks that the package computes (`models.layout`), not from a sketch of them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from vlm_r1.models.layout import make_layout

OUT = Path(__file__).parent / "drawings"
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2933; }
  .small { font-size: 11px; fill: #52606d; }
  .ink { fill: #10202f; }
  .line { stroke: #829ab1; fill: none; stroke-width: 1.5; }
  .frame { fill: #ffffff; stroke: #bcccdc; }
  .image { fill: #f0b429; } .prompt { fill: #62b0e8; } .a1 { fill: #6fc276; } .a2 { fill: #f08c4b; }
  .a3 { fill: #b197ea; } .work { fill: #d9e2ec; } .off { fill: #f0f4f8; }
  .on { fill: #f7f9fb; stroke: #bcccdc; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb; } .small { fill: #9aa5b1; } .ink { fill: #10202f; }
    .frame, .on { fill: #1f2933; stroke: #52606d; }
    .work { fill: #3e4c59; } .off { fill: #27313b; } .line { stroke: #7b8794; }
  }
"""
ANSWERS = ("a1", "a2", "a3")


class Drawing:
    """Shapes of one SVG image."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, kind: str, label: str = "", small: str = "") -> None:
        """A rounded rectangle with a label in its middle and a smaller one below it."""
        self.shapes.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="4"/>')
        middle = y + h / 2 + (4 if not small else -3)
        if label:
            self.text(x + w / 2, middle, label, "ink" if kind in (*ANSWERS, "image", "prompt") else "")
        if small:
            self.text(x + w / 2, y + h / 2 + 13, small, "small")

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        """A line of text."""
        self.shapes.append(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """An arrow."""
        self.shapes.append(f'<path class="line" d="M{x1} {y1} L{x2} {y2}" marker-end="url(#tip)"/>')

    def write(self, name: str) -> None:
        """Write it to the folder of drawings."""
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z" fill="#829ab1"/></marker></defs>'
        )
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">'
        lines = [
            head,
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            tip,
            *self.shapes,
            "</svg>",
            "",
        ]
        (OUT / f"{name}.svg").write_text("\n".join(lines), encoding="utf-8")


def step() -> Drawing:
    """The arrows of one step."""
    d = Drawing(760, 190, "One step: sample, prompt, answers, scores, advantages, update")
    names = [
        ("sample", "image, question"),
        ("prompt", "tokens, pixels"),
        ("G answers", "sampled"),
        ("scores", "rules"),
    ]
    names += [("advantages", "within the group"), ("update", "packed row")]
    for i, (name, small) in enumerate(names):
        d.box(10 + i * 125, 40, 105, 52, "on", name, small)
        if i:
            d.arrow(10 + i * 125 - 20, 66, 10 + i * 125 - 3, 66)
    labels = ("data/", "models/", "rollout/", "rewards/", "rl/advantage.py", "rl/step.py")
    for i, folder in enumerate(labels):
        d.text(62 + i * 125, 112, folder, "small")
    d.shapes.append('<path class="line" d="M687 120 V150 H312 V122" marker-end="url(#tip)"/>')
    d.text(500, 168, "the updated weights answer the next questions", "small")
    return d


def row() -> Drawing:
    """Padded rows of the usual trainers, and one packed row."""
    d = Drawing(760, 250, "Three answers: padded rows repeat image and prompt; a packed row has them once")
    lengths = (110, 74, 150)
    d.text(10, 22, "usual: image and prompt once for every answer, padded to the longest", "small", "start")
    for i, length in enumerate(lengths):
        y = 32 + i * 34
        d.box(10, y, 200, 26, "image", "image")
        d.box(212, y, 110, 26, "prompt", "question")
        d.box(324, y, length, 26, ANSWERS[i], f"answer {i + 1}")
        if length < 150:
            d.box(326 + length, y, 148 - length, 26, "off", "padding" if length < 100 else "")
    d.text(10, 168, "here: one row; each answer's positions go on where the prompt ends", "small", "start")
    d.box(10, 178, 200, 30, "image", "image")
    d.box(212, 178, 110, 30, "prompt", "question")
    x = 324.0
    for i, length in enumerate(lengths):
        d.box(x, 178, length, 30, ANSWERS[i], f"answer {i + 1}")
        x += length + 2
    for at, position in ((10, "0"), (212, "n"), (324, "m"), (436, "m"), (512, "m")):
        d.text(at + 2, 226, position, "small", "start")
    d.text(10, 244, "position", "small", "start")
    return d


def attention() -> Drawing:
    """Who looks at whom in a packed row, from the package's own masks."""
    prefix, branches = 6, (3, 2, 4)
    layout = make_layout([prefix], branches, [0, 0, 0])
    mask = layout.branch_mask(None)[:, 0]
    total, cell = prefix + sum(branches), 20
    d = Drawing(560, 90 + cell * total, "Attention in a packed row: an answer sees the prompt and itself")
    d.text(
        10,
        22,
        "Rows look at columns: an answer sees its prompt and its own tokens so far.",
        "small",
        "start",
    )
    left, top = 120, 60
    starts = [prefix + sum(branches[:i]) for i in range(len(branches))]
    d.text(left + prefix * cell / 2, top - 8, "image, question", "small")
    for b, start in enumerate(starts):
        d.text(left + (start + branches[b] / 2) * cell, top - 8, f"a{b + 1}", "small")
        d.text(left - 8, top + (start + branches[b] / 2) * cell + 4, f"answer {b + 1}", "small", "end")
    d.text(left - 8, top + prefix * cell / 2 + 4, "image, question", "small", "end")
    for r in range(total):
        for c in range(total):
            kind = "off"
            if r < prefix:
                kind = "prompt" if c <= r else "off"
            else:
                b = max(i for i, start in enumerate(starts) if start <= r)
                t = r - starts[b]
                if c < prefix:
                    kind = "prompt" if bool(mask[b, t, c]) else "off"
                elif starts[b] <= c < starts[b] + branches[b]:
                    kind = ANSWERS[b] if bool(mask[b, t, prefix + c - starts[b]]) else "off"
            d.box(left + c * cell + 1, top + r * cell + 1, cell - 2, cell - 2, kind)
    return d


def decoding() -> Drawing:
    """One copy of the prompt's keys and values while G answers are written."""
    d = Drawing(760, 210, "While G answers are written, the prompt's keys and values exist once")
    d.box(10, 60, 330, 34, "prompt", "keys and values of image and question, once")
    for i in range(3):
        y = 20 + i * 44
        d.box(430, y, 150 - i * 30, 34, ANSWERS[i], f"own keys {i + 1}")
        d.box(630, y, 110, 34, "on", "next token")
        d.arrow(582 - i * 30, y + 17, 627, y + 17)
        d.arrow(342, 77, 427, y + 17)
    d.text(
        10,
        170,
        "The queries of all answers meet the prompt's keys in one product; the softmax over the prompt and the",
        "small",
        "start",
    )
    d.text(
        10,
        186,
        "one over an answer's own tokens are joined by their maxima and sums, so the result is exact.",
        "small",
        "start",
    )
    return d


def main() -> None:
    """Write every drawing."""
    OUT.mkdir(exist_ok=True)
    for make in (step, row, attention, decoding):
        make().write(make.__name__)


if __name__ == "__main__":
    main()
