"""One vLLM server over HTTP: answers, weights, caches, sleep. Facts about its routes: docs/vllm.md.

Every request ends in an answer, in `Unfit` (the server is gone, hangs, or is not what it should be: another one or the
same one later may do) or in an `EngineError` (asking again would end the same way).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from vlm_r1.errors import EngineError
from vlm_r1.rollout.vllm_launch import BACKEND, MODEL

OLDEST = (0, 32)
"""The first version of vLLM with all routes that are used, as they are used."""
FROM_FOLDER = "default"
"""What a server calls the weights that it was started with."""
LOADING = "loading"
"""What a server calls weights that are on their way."""
CONTROL_S = 60.0
"""Seconds for a request that does no work; a server that takes longer hangs."""
UPDATE_S = 600.0
"""Seconds for taking over weights, waking up and the like."""


class Unfit(Exception):
    """A server that cannot be used as it is: why, for a person."""


class Server:
    """A server at `url`; `secret` is its bearer token."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        # trust_env: a proxy of the environment must not see weights' addresses or the secret
        self.http = httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits, trust_env=False)

    async def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        timeout: float = CONTROL_S,
        method: str = "POST",
    ) -> Any:
        """What a route answers, parsed where it is JSON.

        Raises `Unfit`, or `EngineError` for a request that can never succeed.
        """
        try:
            # A time-out on the whole request: one on each read would be renewed by every byte.
            async with asyncio.timeout(timeout):
                response = await self.http.request(method, path, json=body, params=params, timeout=None)
        except TimeoutError:
            raise Unfit(f"{path} did not answer within {timeout:.0f} s") from None
        except httpx.HTTPError as error:
            raise Unfit(f"{path}: {str(error) or type(error).__name__}") from None
        if response.status_code in (401, 403) and "scale-out" not in response.text:
            raise EngineError(
                f"{self.url}: refuses the secret (HTTP {response.status_code}); set the environment variable "
                "VLM_R1_SECRET of this run to that of the server"
            )
        if response.status_code >= 300:
            raise RouteError(path, response)
        try:
            return response.json()
        except ValueError:  # some routes answer with a sentence, some with nothing
            return response.text

    async def label(self, timeout: float = CONTROL_S) -> str:
        """What the server calls the weights it holds. The engine itself answers, so one that hangs does not."""
        found = await self.call("/weight_info", method="GET", timeout=timeout)
        return str(found["weight_version"])

    async def generate(self, body: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The completions of one prompt. Raises `EngineError` where the server says that the request is wrong."""
        try:
            found = await self.call("/inference/v1/generate", body, timeout=timeout)
        except RouteError as error:
            if error.status in (400, 413, 422):
                raise EngineError(f"{self.url}: refuses a prompt: {error.said}") from None
            raise
        if not isinstance(found, dict):
            raise Unfit("it answered a prompt with something that is not JSON")
        return found

    async def load(self, files: Sequence[str], label: str) -> None:
        """Take over the weights in these files and forget everything made with the ones before.

        A finished update resets nothing by itself: keys and values of prompts (prefix cache) and features of images
        (encoder cache) of the old weights would be used on. Requests that a dead trainer left are ended first, because
        resetting beside requests in flight is unsafe.
        """
        await self.call("/abort_requests", {}, timeout=UPDATE_S)
        # Whether a pause resets caches depends on its mode and on the engine's process: here it never does.
        await self.call("/pause", params={"mode": "keep", "clear_cache": "false"}, timeout=UPDATE_S)
        await self.rename(LOADING)
        try:
            await self.call("/start_weight_update", timeout=UPDATE_S)
        except RouteError:  # a trainer died between start and finish
            await self.call("/finish_weight_update", {}, timeout=UPDATE_S)
            await self.call("/start_weight_update", timeout=UPDATE_S)
        await self.call("/update_weights", {"update_info": {"paths": list(files)}}, timeout=UPDATE_S)
        await self.reset_caches()
        await self.call("/finish_weight_update", {"weight_version": label}, timeout=UPDATE_S)
        await self.call("/resume", timeout=UPDATE_S)

    async def reset_caches(self) -> None:
        """Forget keys and values of prompts, and features of images. Raises `Unfit` where blocks stay held."""
        await self.call("/reset_encoder_cache", timeout=UPDATE_S)
        for _ in range(100):
            if (await self.call("/reset_prefix_cache", timeout=UPDATE_S))["success"]:
                return
            await asyncio.sleep(0.1)
        raise Unfit("the prefix cache cannot be reset: blocks are held for 10 s after the last request")

    async def load_adapter(self, folder: str, name: str) -> None:
        """Make an adapter of peft's layout known under a name of its own."""
        await self.call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, timeout=UPDATE_S)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        await self.call("/v1/unload_lora_adapter", {"lora_name": name}, timeout=UPDATE_S)

    async def models(self) -> set[str]:
        """The names of the model and of the adapters that the server knows."""
        found = await self.call("/v1/models", method="GET")
        return {str(entry["id"]) for entry in found["data"]}

    async def checksums(self) -> dict[str, str]:
        """A hash of every parameter as the server holds it; reads all weights."""
        found = await self.call("/weight_checker", {"action": "checksum"}, timeout=UPDATE_S)
        return dict(found["checksums"])

    async def rename(self, label: str) -> None:
        """Call the weights something else. While they change they have a name that nobody asks for: an update that
        breaks off leaves layers of both."""
        await self.call("/update_weight_version", {"new_version": label})

    async def sleep(self) -> None:
        """Give the GPU's memory back, weights included."""
        await self.rename(LOADING)
        await self.call("/sleep", params={"level": 2, "mode": "abort"}, timeout=UPDATE_S)

    async def wake(self, tag: str) -> None:
        """Get memory for `weights` or for `kv_cache`."""
        await self.call("/wake_up", params={"tags": tag}, timeout=UPDATE_S)

    async def info(self) -> dict[str, Any]:
        """vLLM's own configuration of the server."""
        found = await self.call("/server_info", params={"config_format": "json"}, method="GET", timeout=UPDATE_S)
        return dict(found["vllm_config"])

    async def problems(self, *, adapted: bool, sleeps: bool) -> list[str]:
        """What the server lacks, a sentence each. Raises `Unfit` where it does not answer."""
        again = "start it with `vlm-r1 serve`, or add"
        version = str((await self.call("/version", method="GET"))["version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            return [f"vLLM {version} is older than {oldest}, the first that this project works with; update vLLM"]
        try:
            config = await self.info()
        except RouteError:
            return [f"its routes for training are closed; {again} the environment variable VLLM_SERVER_DEV_MODE=1"]
        found = []
        model = config["model_config"]
        if model["logprobs_mode"] != "processed_logprobs":
            found.append(
                f"its log-probs are {model['logprobs_mode']}, not those of the tokens as sampled; {again} "
                "--logprobs-mode processed_logprobs"
            )
        if model["generation_config"] != "vllm":
            found.append(f"it samples by the model's generation_config.json; {again} --generation-config vllm")
        if MODEL not in await self.models():
            found.append(f"it calls its model {model['served_model_name']}; {again} --served-model-name {MODEL}")
        transfer = config.get("weight_transfer_config") or {}
        if transfer.get("backend") != BACKEND and not adapted:
            found.append(f"it cannot take weights from files; {again} --weight-transfer-config and the worker module")
        if sleeps and not model["enable_sleep_mode"]:
            found.append(f"it cannot sleep; {again} --enable-sleep-mode")
        if (model["multimodal_config"] or {}).get("limit_per_prompt", {}).get("image") == {"count": 0}:
            found.append(f"it takes no images; {again} --limit-mm-per-prompt")
        if adapted and not config.get("lora_config"):
            found.append(f"it takes no adapters; {again} --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
        try:
            await self.call("/inference/v1/generate", {"token_ids": []})
        except RouteError as error:
            if "scale-out" in error.said:
                found.append(f"its route for token ids is closed; {again} --enable-scale-out")
        return found


class RouteError(Unfit):
    """A route that answered with an error: its `status` and what it `said`."""

    def __init__(self, path: str, response: httpx.Response) -> None:
        self.status, self.said = response.status_code, _said(response)
        super().__init__(f"{path} answered HTTP {self.status}: {self.said}")


def _said(response: httpx.Response) -> str:
    """The message in an error's body, on one line."""
    text = response.text
    with contextlib.suppress(ValueError):
        body: Any = json.loads(text)
        for key in ("error", "detail", "message"):
            body = body.get(key, body) if isinstance(body, dict) else body
        text = str(body)
    return " ".join(text.split())[:300]
