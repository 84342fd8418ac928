"""The loss and every parameter's gradient of our update beside TRL's, on the same completions.

    python benchmarks/trl_loss.py

Tiny Qwen3-VL and Qwen2.5-VL models with random weights, prompts with none to three images of different sizes, groups
of completions of 1 to 12 tokens; see `CASES` for what is compared and `DIFFERENCES` for what is not the same in TRL.

TRL 1.16.0 comes with `make setup-bench`, or from any folder on PYTHONPATH that holds it. Writes
`docs/results/trl_loss.json`. `tests/rl/test_trl_loss.py` holds the same cases to the same limits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from _measure import commit, machine, versions
from _trl_loss import Case, Outcome, groups_of, open_case, ours, theirs
from support import FAMILIES, save_tiny

ROOT = Path(__file__).resolve().parent.parent
LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4
"""Largest relative errors that count as equal."""
LOSS_FLOOR = 1e-2
"""Errors of smaller losses are taken relative to this: on-policy GRPO's loss is zero but for rounding."""

OURS_KL: dict[str, Any] = {"beta": 0.04}
TRL_KL = OURS_KL | {"use_bias_correction_kl": False}
CASES = (
    Case(name="grpo-on-policy", iterations=1),
    Case(name="grpo-on-policy-kl", iterations=1, rl=OURS_KL, trl=TRL_KL),
    Case(name="grpo"),
    Case(name="grpo-several-rows", token_budget=70),
    Case(name="grpo-kl", rl=OURS_KL, trl=TRL_KL),
    Case(
        name="dr_grpo",
        algorithm="dr_grpo",
        rl=OURS_KL,
        trl=TRL_KL | {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    Case(name="dapo", algorithm="dapo", trl={"loss_type": "dapo", "epsilon_high": 0.28}),
    Case(name="dapo-kl", algorithm="dapo", rl=OURS_KL, trl=TRL_KL | {"loss_type": "dapo", "epsilon_high": 0.28}),
    Case(
        name="cispo",
        algorithm="cispo",
        rl={"clip_low": 1.0, "clip_high": 0.2},
        trl={"loss_type": "cispo", "epsilon_high": 1.2},
    ),
    Case(
        name="gspo",
        algorithm="gspo",
        rl=OURS_KL | {"clip_low": 0.03, "clip_high": 0.04},
        trl=TRL_KL | {"importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
    ),
    Case(name="token-truncate", corrects="token_truncate"),
    Case(name="token-mask", corrects="token_mask"),
    Case(name="sequence-truncate", corrects="sequence_truncate"),
    Case(name="sequence-mask", corrects="sequence_mask"),
)
UNEQUAL = (
    Case(name="grpo-with-placeholders-masked", suppressed=True),
    Case(name="grpo-kl-at-trl-default", rl=OURS_KL, trl=OURS_KL),
    Case(
        name="cispo-at-clip_low-0.2",
        algorithm="cispo",
        rl={"clip_low": 0.2},
        trl={"loss_type": "cispo", "epsilon_high": 1.2},
    ),
)
"""Measured for `DIFFERENCES`; not held to the limits."""

DIFFERENCES = {
    "image placeholders": "We mask them in the softmax when scoring, as when sampling; TRL scores with the whole "
    "vocabulary. Compared with our mask taken off; grpo-with-placeholders-masked is the size of the difference here, "
    "where the model is random and all tokens are about equally likely.",
    "kl": "TRL multiplies each token's k3 by its ratio, with a gradient through it (use_bias_correction_kl, on by "
    "default, after DeepSeek-V3.2, arXiv 2512.02556). Ours is the GRPO paper's term (arXiv 2402.03300, eq. 4), without "
    "the ratio. Compared with TRL's switch off; grpo-kl-at-trl-default is the size of the difference.",
    "cispo": "TRL's epsilon_high is the largest weight itself (ScaleRL, arXiv 2510.13786) and there is no lower bound; "
    "ours are the widths of MiniMax-M1 (arXiv 2506.13585, eq. 5), 1 - clip_low and 1 + clip_high. MiniMax-M1 sets its "
    "lower width so large that it never binds, which is clip_low 1 here. Equal at clip_low 1 and epsilon_high = 1 + "
    "clip_high; cispo-at-clip_low-0.2 is the size of the difference.",
    "rloo": "Not compared. TRL's RLOOTrainer takes the ratio of whole completions, so a completion's gradient is its "
    "advantage times the sum over its tokens, as in the paper (arXiv 2402.14740); ours weighs tokens the "
    "same but clips each token's own ratio. TRL also subtracts the KL from the reward, ours adds it to the loss.",
    "prompts with and without images": "In one batch TRL hands None to the image processor, which refuses it; "
    "repaired for this comparison.",
}


def relative_gradient_errors(first: Outcome, second: Outcome) -> dict[str, float]:
    """Norm of each parameter's difference over the norm of `second`'s gradient.

    A thousandth of the largest norm is added below the line: a gradient that is zero but for rounding (of a key's bias)
    has no relative error. Raises `ValueError` where the two have other parameters.
    """
    if first.gradients.keys() != second.gradients.keys():
        raise ValueError(f"other parameters: {sorted(first.gradients.keys() ^ second.gradients.keys())}")
    norms = {name: float(gradient.norm()) for name, gradient in second.gradients.items()}
    floor = 1e-3 * max(norms.values())
    return {n: float((first.gradients[n] - g).norm()) / (norms[n] + floor) for n, g in second.gradients.items()}


def compare(model: Path, folder: Path, case: Case) -> dict[str, Any]:
    """One case on one model, as a row of the result."""
    with open_case(model, folder / "run", case) as session:
        groups = groups_of(session)
        first = ours(session, groups, case)
    second = theirs(model, folder / "trl", groups, case)
    errors = relative_gradient_errors(first, second)
    worst = max(errors, key=errors.__getitem__)
    shown = {name: value for name, value in second.metrics.items() if _shown(name)}
    return {
        "case": case.name,
        "loss": first.loss,
        "loss_trl": second.loss,
        "loss_error": abs(first.loss - second.loss) / max(abs(second.loss), LOSS_FLOOR),
        "gradient_error": errors[worst],
        "gradient_worst": worst,
        "parameters": len(errors),
        "advantage_error": float((first.advantages - second.advantages.cpu()).abs().max()),
        "metrics": {name: first.metrics[name] for name in first.metrics if _shown(name)},
        "metrics_trl": shown,
    }


def _shown(name: str) -> bool:
    return name in ("kl", "entropy") or "clip_ratio" in name or name.startswith("sampling/")


def main() -> None:
    """Compare everything, print a line for each case, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder for the results")
    out = parser.parse_args().out
    equal, unequal = [], []
    with tempfile.TemporaryDirectory() as name:
        for family in FAMILIES:
            model = save_tiny(Path(name, family), family)
            for number, case in enumerate(CASES + UNEQUAL):
                row = {"family": family, **compare(model, Path(name, f"{family}-{number}"), case)}
                (unequal if case in UNEQUAL else equal).append(row)
                print(
                    f"{family} {case.name}: loss {row['loss']:.7f}, TRL's {row['loss_trl']:.7f}, "
                    f"relative error {row['loss_error']:.1e}, of the gradients at most {row['gradient_error']:.1e}"
                )
    loss, gradient = max(r["loss_error"] for r in equal), max(r["gradient_error"] for r in equal)
    result = {
        "benchmark": "trl_loss",
        "command": "python benchmarks/trl_loss.py",
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "equal": loss <= LOSS_LIMIT and gradient <= GRADIENT_LIMIT,
        "largest_loss_error": loss,
        "largest_gradient_error": gradient,
        "limits": {"loss": LOSS_LIMIT, "gradient": GRADIENT_LIMIT, "loss_floor": LOSS_FLOOR},
        "cases": equal,
        "differences": DIFFERENCES,
        "differences_measured": unequal,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "trl_loss.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"largest errors: loss {loss:.1e}, gradients {gradient:.1e}; wrote {out / 'trl_loss.json'}")


if __name__ == "__main__":
    main()
