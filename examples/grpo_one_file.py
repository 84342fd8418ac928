"""GRPO for a vision-language model in one file: the method of VLM-R1 without the package.

A small Qwen3-VL model looks at an image of coloured shapes, is asked for one of them ("the red circle"), thinks, and
answers with a box in thousandths of the image:

    <think>red circle, top left</think><answer>[104, 120, 375, 391]</answer>

Nobody shows it a right answer. In each step it answers every question G times, a rule scores the answers (how well the
box fits, and whether the form was kept), and answers that beat their group's mean become likelier. The costly part of
a vision-language prompt is the image, so image and prompt run once for all G answers: once while sampling (a cache
with one row per prompt) and once while learning (a row `[prompt | answer 1 | ... | answer G]`). Both are exact: every
answer gets the log-probs it would get alone behind its prompt.

    .venv/bin/python examples/grpo_one_file.py

Takes about 90 seconds on a quiet CPU core. The model that ships with the package was taught loose boxes; expect the
mean IoU on held-out questions to go from 0.48 to 0.64 or 0.66 (seeds 0 to 2 in docs/results/grpo_one_file.json).

Names end in their dimensions: P prompts, G answers to each, L tokens of the longest prompt, T tokens of the longest
answer, N places of a row (the last Q of them are run), V words of the vocabulary, D width. Left out, and in the
package: a KL term, several updates per rollout, finished answers leaving the batch, GPUs, other models and rewards.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoTokenizer, DynamicCache, Qwen2VLImageProcessorPil

# Settings

STEPS = 40  # optimiser steps
PROMPTS = 16  # P: questions in a step
GROUP = 16  # G: answers to each question, compared with each other
MAX_NEW_TOKENS = 40  # T at most: a good answer has about 27
LEARNING_RATE = 1e-4  # fits a model of 2.6 million parameters; large ones want about 1e-6
MAX_GRAD_NORM = 1.0  # longer gradients are scaled down to this norm
CLIP = 0.2  # a token's probability ratio counts only within 1 - CLIP .. 1 + CLIP
FORMAT_WEIGHT = 0.2  # reward for keeping the form; a box that fits exactly gets 1
HELD_OUT = 300  # questions of the greedy evaluation before and after, the same for every seed
MODEL = Path(__file__).resolve().parent.parent / "src/vlm_r1/assets/tiny"  # any folder of a Qwen3-VL model

# Scenes: an image, a question that fits exactly one of its shapes, and that shape's box (x1, y1, x2, y2) in pixels

Scene = namedtuple("Scene", ("image", "question", "box"))
SIZE = 96  # side of an image in pixels
COLOURS = {"red": "#dc2828", "green": "#28aa3c", "blue": "#3250dc", "yellow": "#f0d228", "purple": "#963cbe"}
A, B = 1 / 3, 2 / 3
SHAPES = {  # corners, as shares of the side; a circle has none
    "circle": [],
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "cross": [(A, 0), (B, 0), (B, A), (1, A), (1, B), (B, B), (B, 1), (A, 1), (A, B), (0, B), (0, A), (A, A)],
}


def make_scene(rng):
    """A few shapes that do not overlap, on a light ground, and a question about one of them."""
    boxes = []
    for _ in range(int(rng.integers(3, 13))):
        side = int(rng.integers(14, 41))
        x, y = (int(v) for v in rng.integers(1, SIZE - side, 2))
        box = (x, y, x + side, y + side)
        if all(iou(box, other) == 0 for other in boxes):
            boxes.append(box)
    kinds = [(str(rng.choice(list(COLOURS))), str(rng.choice(list(SHAPES)))) for _ in boxes]
    image = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(185, 250, 3)))
    draw = ImageDraw.Draw(image)
    for (colour, shape), (x, y, right, _) in zip(kinds, boxes, strict=True):
        side = right - x - 1  # pillow paints the far edge too
        if shape == "circle":
            draw.ellipse((x, y, x + side, y + side), fill=COLOURS[colour])
        else:
            draw.polygon([(x + u * side, y + v * side) for u, v in SHAPES[shape]], fill=COLOURS[colour])
    names = [(f"the {colour} {shape}", f"the {colour} object", f"the {shape}") for colour, shape in kinds]
    counts = Counter(name for three in names for name in three)
    fits_one = [(name, box) for three, box in zip(names, boxes, strict=True) for name in three if counts[name] == 1]
    return Scene(image, *fits_one[int(rng.integers(len(fits_one)))]) if fits_one else make_scene(rng)


# Reward: parse the answer, measure the box


def iou(a, b):
    """Intersection over union of two boxes, in [0, 1]; 0 for a reversed or empty one."""

    def area(x1, y1, x2, y2):
        return max(0, x2 - x1) * max(0, y2 - y1)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return shared / (area(*a) + area(*b) - shared) if shared else 0.0


R1_FORM = re.compile(r"\s*<think>.*</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
BOX = re.compile(r"\s*\[(\d+), ?(\d+), ?(\d+), ?(\d+)\]\s*")


def parse(text):
    """Whether an answer has the R1 form, and its box in pixels (None without one). The model counts in 0..1000."""
    form = R1_FORM.fullmatch(text)
    if form is None or text.count("<think>") > 1 or text.count("<answer>") > 1:
        return False, None
    box = BOX.fullmatch(form[1])
    return True, None if box is None else tuple(int(v) * SIZE / 1000 for v in box.groups())


def reward(text, true_box):
    """How well the box fits, in [0, 1], plus a little for the form."""
    well_formed, box = parse(text)
    return FORMAT_WEIGHT * well_formed + (iou(box, true_box) if box else 0.0)


# Prompts: P of them, padded on the left to L tokens, and their images. `owner_PL` says whose token a place holds:
# PADDING, PROMPT, or (behind the prompt) the number of an answer, from 1. `positions_3PL` are rotary positions (time,
# row, column); an answer goes on at `next_P` in all three.

Prompts = namedtuple("Prompts", ("ids_PL", "owner_PL", "positions_3PL", "next_P", "images"))
PADDING, PROMPT = -1, 0


class Policy:
    """The model with its tokenizer and image processor (AutoProcessor wants torchvision, for video)."""

    def __init__(self, path):
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(path)
        self.image = self.model.config.image_token_id
        # A placeholder in an answer would ask for an image that is not there: the policy gives it no probability.
        self.suppressed = torch.tensor([self.image, self.model.config.video_token_id])

    def prompts(self, scenes):
        """The chat turn of every scene: its image, one placeholder token for each merged patch, and the question."""
        seen = self.images([scene.image for scene in scenes], return_tensors="pt")
        placeholder = self.tokenizer.convert_ids_to_tokens(self.image)
        texts = []
        for scene, grid in zip(scenes, seen["image_grid_thw"], strict=True):
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": scene.question}]}
            text = self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
            texts.append(text.replace(placeholder, placeholder * int(grid.prod() // self.images.merge_size**2)))
        tokens = self.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        ids_PL, real_PL = tokens["input_ids"], tokens["attention_mask"]
        positions_3PL, _ = self.model.model.get_rope_index(
            ids_PL, (ids_PL == self.image).int(), image_grid_thw=seen["image_grid_thw"], attention_mask=real_PL
        )
        owner_PL = torch.where(real_PL.bool(), PROMPT, PADDING)
        return Prompts(ids_PL, owner_PL, positions_3PL, positions_3PL.amax((0, 2)) + 1, dict(seen))

    def hidden(self, ids_PQ, owner_PN, positions_3PQ, **rest):
        """Last hidden states (P, Q, D) of tokens at the last Q of N places; a cache holds the places before."""
        mask_P1QN = visible(owner_PN, ids_PQ.shape[1])[:, None]
        inputs = {"input_ids": ids_PQ, "attention_mask": mask_P1QN, "position_ids": positions_3PQ}
        return self.model.model(**inputs, **rest).last_hidden_state

    def logprobs(self, hidden):
        """Log-probs (..., V) of the next token after hidden states (..., D): one formula for sampling and scoring."""
        return F.log_softmax(self.model.lm_head(hidden).index_fill(-1, self.suppressed, -torch.inf), -1)


def visible(owner_PN, Q):
    """Which of the N places each of the last Q sees, (P, Q, N): the prompt and its own answer, up to itself.

    This one rule holds while sampling and while learning. Padding is seen by padding alone.
    """
    N = owner_PN.shape[1]
    before_QN = torch.arange(N) <= torch.arange(N - Q, N)[:, None]
    same_PQN = owner_PN[:, -Q:, None] == owner_PN[:, None]
    return before_QN & (same_PQN | (owner_PN == PROMPT)[:, None])


# Rollout: image and prompt once, then one token at a time for all answers


@torch.no_grad()
def rollout(policy, prompts, group, greedy=False):
    """`group` answers to each prompt: tokens, their log-probs and which of them are real, all (P, G, T), and texts.

    The cache keeps one row per prompt. A step feeds it G tokens, one for each answer, and `visible` keeps the answers
    apart, so the prompt's keys and values are stored once and not G times.
    """
    cache, owner_PN = DynamicCache(config=policy.model.config.text_config), prompts.owner_PL
    owner_PG = torch.arange(1, group + 1).expand(len(owner_PN), -1)
    once = {"past_key_values": cache, **prompts.images}
    hidden_PGD = policy.hidden(prompts.ids_PL, owner_PN, prompts.positions_3PL, **once)[:, -1:].expand(-1, group, -1)
    running_PG = torch.ones_like(owner_PG, dtype=torch.bool)
    tokens, logprobs, real = [], [], []
    for t in range(MAX_NEW_TOKENS):
        logprobs_PGV = policy.logprobs(hidden_PGD)
        sampled_PG = torch.multinomial(logprobs_PGV.exp().flatten(0, 1), 1).view_as(owner_PG)
        chosen_PG = logprobs_PGV.argmax(-1) if greedy else sampled_PG
        token_PG = torch.where(running_PG, chosen_PG, policy.tokenizer.pad_token_id)
        tokens.append(token_PG)
        logprobs.append(logprobs_PGV.gather(-1, token_PG[..., None])[..., 0])
        real.append(running_PG)
        running_PG = running_PG & (token_PG != policy.tokenizer.eos_token_id)
        if not running_PG.any():
            break
        owner_PN = torch.cat([owner_PN, owner_PG], 1)
        positions_3PG = (prompts.next_P + t)[None, :, None].expand(3, -1, group)
        hidden_PGD = policy.hidden(token_PG, owner_PN, positions_3PG, past_key_values=cache)
    tokens_PGT = torch.stack(tokens, 2)
    texts = policy.tokenizer.batch_decode(tokens_PGT.flatten(0, 1), skip_special_tokens=True)
    return tokens_PGT, torch.stack(logprobs, 2), torch.stack(real, 2), texts


# Learning: one packed row per prompt


def advantages(rewards_PG):
    """(r - mean) / (std + 1e-4) within each group: what an answer is worth beside its siblings (GRPO)."""
    return (rewards_PG - rewards_PG.mean(1, keepdim=True)) / (rewards_PG.std(1, keepdim=True) + 1e-4)


def packed_logprobs(policy, prompts, tokens_PGT, real_PGT):
    """Log-probs (P, G, T) of the answers' tokens from rows [prompt | answer 1 | ... | answer G], with gradient.

    Every answer's positions start again where the prompt's end, and `visible` keeps the answers apart: each is scored
    as if it stood alone behind the prompt. Values behind an answer's end mean nothing.
    """
    (P, G, T), L = tokens_PGT.shape, prompts.ids_PL.shape[1]
    owner_PGT = torch.where(real_PGT, torch.arange(1, G + 1)[:, None], PADDING)
    positions_PGT = (prompts.next_P[:, None, None] + torch.arange(T)).expand(P, G, T)
    ids_PN = torch.cat([prompts.ids_PL, tokens_PGT.flatten(1)], 1)
    owner_PN = torch.cat([prompts.owner_PL, owner_PGT.flatten(1)], 1)
    positions_3PN = torch.cat([prompts.positions_3PL, positions_PGT.flatten(1).expand(3, -1, -1)], 2)
    hidden_PND = policy.hidden(ids_PN, owner_PN, positions_3PN, use_cache=False, **prompts.images)
    # The prompt's last token predicts every answer's first; token t - 1 of an answer predicts its token t.
    first_PG1D = hidden_PND[:, None, L - 1 : L].expand(-1, G, -1, -1)
    rest_PGTD = hidden_PND[:, L:].unflatten(1, (G, T))[:, :, :-1]
    logprobs_PGTV = policy.logprobs(torch.cat([first_PG1D, rest_PGTD], 2))
    return logprobs_PGTV.gather(-1, tokens_PGT[..., None])[..., 0]


def grpo_loss(logprobs_PGT, old_PGT, advantages_PG, real_PGT):
    """PPO's clipped surrogate, averaged over an answer's tokens, then over answers.

    With one update per batch of rollouts the ratio is 1 and the gradient that of advantage * log-prob; the clip is
    what makes further updates on the same answers safe.
    """
    ratio_PGT = torch.where(real_PGT, logprobs_PGT - old_PGT, 0.0).exp()
    clipped_PGT = ratio_PGT.clamp(1 - CLIP, 1 + CLIP)
    gain_PGT = torch.minimum(ratio_PGT * advantages_PG[..., None], clipped_PGT * advantages_PG[..., None])
    return -((gain_PGT * real_PGT).sum(2) / real_PGT.sum(2)).mean()


def evaluate(policy, scenes):
    """Greedy answers: mean IoU, share of boxes with an IoU of at least 0.5, share of answers in R1 form."""
    texts = rollout(policy, policy.prompts(scenes), 1, greedy=True)[-1]
    forms, boxes = zip(*[parse(text) for text in texts], strict=True)
    fits = np.array([iou(box, scene.box) if box else 0.0 for box, scene in zip(boxes, scenes, strict=True)])
    return {"mean_iou": float(fits.mean()), "acc@0.5": float((fits >= 0.5).mean()), "format": float(np.mean(forms))}


def train(path, steps, seed):
    """The loop: evaluate, take the steps, evaluate again. Returns the numbers of the run."""
    torch.manual_seed(seed)
    policy, started, gaps = Policy(path), time.process_time(), [0.0]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    held_out_rng, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    held_out = [make_scene(held_out_rng) for _ in range(HELD_OUT)]
    before = evaluate(policy, held_out)
    for step in range(1, steps + 1):
        scenes = [make_scene(rng) for _ in range(PROMPTS)]
        prompts = policy.prompts(scenes)
        tokens_PGT, old_PGT, real_PGT, texts = rollout(policy, prompts, GROUP)
        rewards = [reward(text, scenes[i // GROUP].box) for i, text in enumerate(texts)]
        rewards_PG = torch.tensor(rewards).view(PROMPTS, GROUP)
        logprobs_PGT = packed_logprobs(policy, prompts, tokens_PGT, real_PGT)
        grpo_loss(logprobs_PGT, old_PGT, advantages(rewards_PG), real_PGT).backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        gaps.append(float((logprobs_PGT.detach() - old_PGT)[real_PGT].abs().max()))  # sampling and scoring agree
        print(f"step {step:2}/{steps}  reward {rewards_PG.mean():.3f}  {time.process_time() - started:4.0f} CPU s")
    after, seconds = evaluate(policy, held_out), round(time.process_time() - started)
    run = {"seed": seed, "gain": after["mean_iou"] - before["mean_iou"], "before": before, "after": after}
    return {**run, "logprob_gap": max(gaps), "cpu_seconds": seconds}


def main():
    """Read the options, run every seed, print the table."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one run for each (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON file to write the results to")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of a Qwen3-VL model (default: the tiny base)")
    args = parser.parse_args()
    config = args.model / "config.json"
    if not config.is_file() or json.loads(config.read_text())["model_type"] != "qwen3_vl":
        parser.error(f"--model: {args.model} is not the folder of a Qwen3-VL model")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    runs = [train(args.model, args.steps, seed) for seed in args.seed]
    print("\nseed  held-out mean IoU         Acc@0.5         R1 form         CPU seconds")
    for run in runs:
        cells = [f"{run['before'][name]:.3f} -> {run['after'][name]:.3f}" for name in run["before"]]
        print(f"{run['seed']:4}  {cells[0]} ({run['gain']:+.3f})  {cells[1]}  {cells[2]}  {run['cpu_seconds']:11}")
    if args.out:
        settings = {"steps": args.steps, "prompts": PROMPTS, "group": GROUP, "lr": LEARNING_RATE, "held_out": HELD_OUT}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        gains = {"mean_gain": float(np.mean([r["gain"] for r in runs])), "smallest_gain": min(r["gain"] for r in runs)}
        about = {"command": "python " + " ".join(sys.argv), "threads": torch.get_num_threads(), **versions}
        result = {**about, "settings": settings, **gains, "runs": runs}
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
