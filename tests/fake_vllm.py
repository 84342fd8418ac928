"""A server with the routes of vLLM that are used, answering with a policy of its own; it can be made to fail.

It stands in for vLLM in the ordinary tests: what is really asked and sent is decoded again, images and weights
included. The tests marked `vllm` use the real one.
"""

import base64
import io
import itertools
import json
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import torch
from PIL import Image
from safetensors.torch import load_file

from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.policy import merge_images
from vlm_r1.records import Prompt, Sample, SampleImage, SamplingParams, Truth
from vlm_r1.rollout.native import NativeEngine

CONFIG = {
    "model_config": {
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "served_model_name": "policy",
        "enable_sleep_mode": False,
        "multimodal_config": {"limit_per_prompt": {"image": {"count": 4}}},
    },
    "weight_transfer_config": {"backend": "vlm_r1_files"},
    "lora_config": None,
}


class FakeVLLM:
    """`with FakeVLLM(loaded) as server:` answers at `server.url` until `stop`; `start` begins anew with first weights.

    `faults` are what the next generate requests meet, one each: a status, "hang", "cut", "old" (another version in the
    answer), "short" (a completion is missing). `log` has the paths that were asked.
    """

    def __init__(self, loaded: LoadedPolicy, *, config: dict | None = None, version: str = "0.32.0") -> None:
        self.loaded, self.config, self.version = loaded, config or CONFIG, version
        self.first = {name: p.detach().clone() for name, p in loaded.policy.named_parameters()}
        self.spoilt = ""
        self.faults: list[int | str] = []
        self.delay = 0.0
        self.log: list[str] = []
        self.answered: Counter[str] = Counter()
        self.port = 0
        self.lock = threading.Lock()
        self.http: ThreadingHTTPServer | None = None
        self.hanging = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "FakeVLLM":
        self.label, self.paused, self.hanging = "default", False, threading.Event()
        self.resident = {"weights", "kv_cache"}
        with torch.no_grad():
            for name, parameter in self.loaded.policy.named_parameters():
                parameter.copy_(self.first[name])
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """As a kill: requests in work break off."""
        http, self.http = self.http, None
        self.hanging.set()
        if http is not None:
            http.shutdown()
            http.server_close()

    __enter__ = start

    def __exit__(self, *error: object) -> None:
        self.stop()

    # -- routes ------------------------------------------------------------------------------------------------------

    def load(self, paths: list[str]) -> None:
        assert "weights" in self.resident
        found = {name: tensor for path in paths for name, tensor in load_file(path).items()}
        with torch.no_grad():
            for name, parameter in self.loaded.policy.model.named_parameters():
                parameter.copy_(found.pop(name))
        assert not found, found.keys()

    def checksums(self) -> dict[str, str]:
        found = self.loaded.policy.model.named_parameters()
        return {name: str(float(p.detach().double().sum())) + self.spoilt for name, p in found}

    def generate(self, body: dict) -> dict:
        assert self.resident == {"weights", "kv_cache"}
        wanted, prompt = body["sampling_params"], self._prompt(body)
        greedy = wanted["temperature"] == 0
        sampling = SamplingParams(
            max_new_tokens=wanted["max_tokens"],
            temperature=wanted["temperature"] or 1.0,
            stop_at_answer="</answer>" in wanted.get("stop", ()),
            max_calls=int("</tool>" in wanted.get("stop", ())),
            seed=None if greedy else (wanted["seed"],),
        )
        with self.lock:
            [group] = NativeEngine(self.loaded).generate([prompt], sampling, n=wanted["n"])
        choices = [
            {
                "index": index,
                "finish_reason": rollout.finish,
                "token_ids": list(rollout.token_ids),
                "logprobs": {"content": [{"logprob": value} for value in rollout.logprobs]},
                "weight_versions": [{"version": self.label, "start": 0, "end": len(rollout.token_ids)}],
            }
            for index, rollout in enumerate(group.rollouts)
        ]
        return {"prompt_token_ids": list(prompt.token_ids), "choices": choices}

    def _prompt(self, body: dict) -> Prompt:
        family = self.loaded.family
        images = [_image(part["url"]) for part in body.get("content_parts", [])]
        visions = [family.process([SampleImage(image=image)]).vision for image in images]
        merge = family.processor.image_processor.merge_size**2
        sizes = itertools.chain(int(v.tensors["image_grid_thw"].prod()) // merge for v in visions)
        marker = self.loaded.policy.model.config.image_token_id
        ids = [token for t in body["token_ids"] for token in ([t] * next(sizes) if t == marker else [t])]
        positions = family.positions(torch.tensor(ids), merge_images(visions))
        empty = family.encode(Sample(id="?", question="?", truth=Truth()))
        return replace(
            empty,
            token_ids=tuple(ids),
            positions=positions,
            next_position=int(positions.max()) + 1,
            images=tuple(visions),
        )


def _image(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVLLM
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(json.loads(data) if data else {})

    def answer(self, body: dict | None) -> None:
        fake, url = self.fake, urlparse(self.path)
        fake.log.append(self.path)
        if url.path == "/inference/v1/generate":
            return self.generate(body or {})
        if url.path == "/update_weights":
            fake.load(body["update_info"]["paths"])
        elif url.path == "/finish_weight_update":
            fake.label = body.get("weight_version", fake.label)
        elif url.path == "/sleep":
            fake.resident = set()
            for parameter in fake.loaded.policy.parameters():
                parameter.data.fill_(float("nan"))
        elif url.path == "/wake_up":
            fake.resident |= set(parse_qs(url.query)["tags"])
        elif url.path == "/update_weight_version":
            fake.label = body["new_version"]
        elif url.path in ("/pause", "/resume"):
            fake.paused = url.path == "/pause"
        fixed = {
            "/version": {"version": fake.version},
            "/weight_info": {"weight_version": fake.label},
            "/server_info": {"vllm_config": fake.config, "query": parse_qs(url.query)},
            "/reset_prefix_cache": {"success": True},
            "/weight_checker": {"checksums": fake.checksums() if url.path == "/weight_checker" else {}},
            "/v1/models": {"data": [{"id": fake.config["model_config"]["served_model_name"]}]},
        }
        self.send(200, fixed.get(url.path, {}))

    def generate(self, body: dict) -> None:
        fake = self.fake
        if not body.get("token_ids"):
            return self.send(400, {"error": {"message": "List should have at least 1 item"}})
        fault = fake.faults.pop(0) if fake.faults else None
        if isinstance(fault, int):
            return self.send(fault, {"error": {"message": "made to fail"}})
        if fault == "hang":
            fake.hanging.wait(60)
        http = fake.http
        if fake.delay:
            threading.Event().wait(fake.delay)
        if fault in ("hang", "cut") or http is None:
            self.close_connection = True
            return None
        found = fake.generate(body)
        if fake.http is not http:  # killed meanwhile
            self.close_connection = True
            return None
        if fault == "old":
            found["choices"][0]["weight_versions"][0]["version"] = "another"
        if fault == "short":
            found["choices"].pop()
        fake.answered[json.dumps([body["token_ids"], body["sampling_params"].get("seed")])] += 1
        return self.send(200, found)

    def send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
