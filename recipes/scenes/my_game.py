"""An environment of one's own: it says how a guessed box lies to the true one, until the model answers."""

from vlm_r1.boxes import iou
from vlm_r1.envs import Reply
from vlm_r1.envs.call import CallError, read_call
from vlm_r1.envs.tools import pixels_of


class HotOrCold:
    """The model guesses with `<tool>{"name": "guess", "box": [x1, y1, x2, y2]}</tool>`, and is told where to go."""

    def __init__(self, near=0.5):
        self.near = near

    def instructions(self, max_calls):
        return f'Guess up to {max_calls} times: <tool>{{"name": "guess", "box": [x1, y1, x2, y2]}}</tool>'

    def begin(self, seen):
        """A state for each answer of the group."""
        return [{"seen": one, "true": one.sample.truth.boxes[0].box, "best": 0.0, "guesses": 0} for one in seen]

    def step(self, state, text):
        """The reply to what the model wrote last; None where that is its answer."""
        call = read_call(text)
        if call is None:
            return None
        if call.name != "guess":
            raise CallError("unknown_tool", "guess is all there is.")
        box, true = pixels_of(state["seen"], call.arguments.get("box"), 4), state["true"]
        state["guesses"] += 1
        state["best"] = max(state["best"], iou(box, true))
        if iou(box, true) >= self.near:
            return Reply(text="hot: answer now", box=box)
        right = true[0] + true[2] > box[0] + box[2]
        down = true[1] + true[3] > box[1] + box[3]
        return Reply(text=f"cold: further {'down' if down else 'up'} and {'right' if right else 'left'}", box=box)

    def score(self, states, texts):
        """What the reward `environment` gives each answer of the group."""
        return [state["best"] - 0.05 * state["guesses"] for state in states]
