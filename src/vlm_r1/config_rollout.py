"""How answers are sampled, and by which engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from vlm_r1.config_section import Section


class RolloutConfig(Section):
    """How answers are sampled."""

    temperature: float = Field(1.0, gt=0, description="of sampling, and of the log-probs that the update computes")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this mass; 1 keeps every token")
    top_k: int = Field(0, ge=0, description="0 keeps every token")
    min_p: float = Field(0.0, ge=0, le=1, description="keep tokens with at least this share of the likeliest one's")
    max_new_tokens: int = Field(512, gt=0, le=1 << 20, description="tokens after which an answer is cut")
    stop_at_answer: bool = Field(
        True,
        description="end a completion at </answer> too, so that the end-of-turn token behind it is neither sampled nor "
        "trained; false: at the end-of-turn token alone, as the paper's code does",
    )
    engine: Literal["native", "vllm", "replay"] = Field(
        "native",
        description="native: the model itself; vllm: servers (docs/vllm.md); replay: the answers of another run "
        "(rollout.replay)",
    )
    servers: list[str] = Field(
        default_factory=list,
        description="addresses of vLLM servers that `vlm-r1 serve` started (http://host:port); default: the run starts "
        "its own, one a GPU, which sleep during the update",
    )
    staleness: int = Field(
        0,
        ge=0,
        description="steps by which answers may be older than the weights they train: with 1 the next step's answers "
        "are written while this step's update runs; 0: never",
    )
    tensor_parallel: int = Field(1, gt=0, description="GPUs of one server that the run starts")
    server_memory: float = Field(
        0.5, gt=0, lt=1, description="share of a GPU's memory for a server that the run starts, while it is awake"
    )
    vllm_python: str | None = Field(
        None, description="Python of vLLM's environment; default: this one where it has vLLM, else .venv-vllm"
    )
    weights_dir: str | None = Field(
        None,
        description="folder through which weights go to servers; all machines must see it. Default: this machine's "
        "memory",
    )
    request_timeout_s: float = Field(
        600.0, gt=0, le=1e8, description="seconds for the answers to one prompt, then asked again"
    )
    server_timeout_s: float = Field(
        900.0, gt=0, le=1e8, description="seconds without any server after which the run saves and stops"
    )
    max_mismatch: float = Field(
        0.05,
        gt=0,
        description="highest mean difference of log-probs between engine and trainer that a run starts with, in nats",
    )
    replay: str | None = Field(
        None, description="a run folder whose rollout tables hold the answers of every step; with engine: replay"
    )
    max_sequences: int | None = Field(
        None, gt=0, description="answers decoded at once by a process; default: as many as kv_cache_gb has room for"
    )
    kv_cache_gb: float | None = Field(
        None,
        gt=0,
        description="GiB for keys and values on each process; default: half of what a GPU has left, a quarter of a CPU "
        "machine's memory",
    )
    gather: Literal["auto", "whole", "by_layer"] = Field(
        "auto",
        description="sharded weights while answering: whole on every process, or a layer at a time (less memory, much "
        "more traffic); auto: by_layer on GPUs where the model takes more than half of the memory",
    )
    cuda_graphs: bool = Field(
        True, description="on a GPU in bfloat16, record a decoding step once and replay it; false: launch every kernel"
    )
    importance_sampling: Literal[
        "auto", "off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = Field(
        "auto",
        description="weigh tokens by trainer over sampler probability, per token or per answer, cut at the cap or set "
        "to 0 above it; auto: token_truncate where the sampler is not the trainer, else off",
    )
    importance_sampling_cap: float = Field(3.0, gt=1, description="highest such weight")

    @model_validator(mode="after")
    def _something_to_replay(self) -> RolloutConfig:
        if (self.engine == "replay") != (self.replay is not None):
            raise ValueError("engine: replay and the key replay (a run folder) go together")
        return self

    @model_validator(mode="after")
    def _for_vllm(self) -> RolloutConfig:
        if self.engine != "vllm":
            given = [key for key in ("servers", "staleness") if getattr(self, key)]
            if given:
                raise ValueError(
                    f"{given[0]}: engine: {self.engine} has no servers; set engine: vllm, or remove the key"
                )
        elif self.top_p < 1 or self.top_k or self.min_p:
            raise ValueError(
                "engine: vllm reports log-probs over the tokens that top_p, top_k and min_p leave, which the update "
                "cannot compute; remove these keys, or use engine: native"
            )
        return self


class EnvConfig(Section):
    """What a model may ask while it answers; `env: zoom` is short for `env: {tools: [zoom]}`."""

    tools: list[str] = Field(
        min_length=1,
        description="tools: zoom, crop, point, draw, or path.py:Name of a function or class of your own; or the one "
        "environment that answers",
    )
    max_calls: int = Field(
        2, gt=0, le=100, description="calls an answer may make; rollout.max_new_tokens counts anew after each"
    )
    timeout_s: float = Field(10.0, gt=0, le=1e6, description="seconds a call may take; then the model is told so")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="name of a class in tools -> keyword arguments it is made with"
    )
