"""What a step of sampling costs on SDXL's whole UNet, with random weights, in ComfyUI: without a subject,
with some, and with decoupled cross-attention.

`bench/in_comfyui.py` runs this in a process of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

from ...avatars.comfy.world import load_world
from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...hosts.comfy.apply import apply_subject
from ...hosts.comfy.encoding.memory import manage_encoder
from ...paths import SMALL_WORLD
from ...settings import SubjectSettings
from ...sites import UNetLayout
from ...subject import Subject
from ..baselines import ADAPTER_TOKENS, SCALE
from ..shapes import TEXT_TOKENS

SDXL: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "use_checkpoint": False,
    "legacy": False,
}
TOKEN_WIDTH = 16  # of the subjects' tokens: their keys and values are of full width, and made beforehand


@dataclass(frozen=True)
class Step:
    """What one step of sampling takes: milliseconds on the clock (the median of some runs, and all of them),
    milliseconds in a GPU's kernels, kernels launched, copies to the device, waits for it, values read from
    tensors, and MiB at the peak. None where there is no GPU."""

    form: str
    batch: int
    wall: float
    walls: tuple[float, ...]
    kernels_ms: float | None
    kernels: int | None
    copies: int | None
    waits: int | None
    items: int
    peak: float | None


@dataclass(frozen=True, eq=False)
class Form:
    name: str
    model: Any
    positive: list[Any]


def sampling(
    *,
    size: int,
    tokens: Sequence[int],
    subjects: Sequence[int],
    batches: Sequence[int],
    steps: int,
    repeats: int,
    unet: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Every form, interleaved within each repetition. size: of a picture's side in pixels. steps: that are
    measured, after one that is not. unet: its configuration, SDXL's if left out."""
    device = comfy.model_management.get_torch_device()
    unet = SDXL if unet is None else unet
    model = _build(unet, device)
    cells, negative = size // 8, _conditioning(unet, device, seed=1)
    found = []

    def draw(form: Form, steps: int, noise: Tensor, callback: Callable[[int], None]) -> None:
        comfy.sample.sample(
            form.model, noise, steps, 5.0, "euler", "normal", form.positive, negative,
            torch.zeros_like(noise), seed=0, disable_pbar=True,
            callback=lambda step, *_: callback(step),
        )  # fmt: skip

    with torch.inference_mode():
        forms = list(_forms(model, unet, tokens, subjects, device))
        for batch in batches:
            noise = torch.randn(batch, 4, cells, cells, generator=torch.Generator().manual_seed(0))

            walls: dict[str, list[float]] = {form.name: [] for form in forms}
            for repetition in range(1 + repeats):  # the first one compiles and warms up
                for form in forms:
                    wall = _wall(partial(draw, form, 1 + steps, noise), steps, device)
                    if repetition:
                        walls[form.name].append(wall)
            for form in forms:
                counts = _counts(partial(draw, form, 3, noise), 2, device)
                taken = tuple(walls[form.name])
                found.append(Step(form.name, batch, statistics.median(taken), taken, *counts))
    return {"size": size, "steps": steps, "forms": [asdict(step) for step in found]}


def _build(unet: dict[str, Any], device: torch.device) -> comfy.model_patcher.ModelPatcher:
    """A UNet of random weights, made where it runs."""
    heads = {"num_heads": -1, "num_head_channels": min(64, unet["model_channels"] // 2)}
    config = comfy.supported_models.SDXL(dict(unet))
    config.unet_config.update(heads)
    config.set_inference_dtype(torch.float16 if device.type == "cuda" else torch.float32, None)
    model = config.get_model({}, device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.diffusion_model.named_parameters():
            if parameter.dim() < 2:  # biases, and the scales of norms
                parameter.fill_(float("norm" in name and name.endswith("weight")))
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return comfy.model_patcher.ModelPatcher(
        model.eval(), device, comfy.model_management.unet_offload_device()
    )


def _conditioning(unet: dict[str, Any], device: torch.device, seed: int, **entries: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, TEXT_TOKENS, unet["context_dim"], generator=generator)
    pooled = torch.randn(1, unet["adm_in_channels"] - 6 * 256, generator=generator)
    return [[context, {**entries, "pooled_output": pooled}]]


def _forms(
    model: Any, unet: dict[str, Any], tokens: Sequence[int], subjects: Sequence[int], device: torch.device
) -> Iterator[Form]:
    """Plain; subjects, each number of tokens for one of them and the middle one for more; decoupled."""
    plain = _conditioning(unet, device, seed=0)
    yield Form("plain", model, plain)
    middle = sorted(tokens)[len(tokens) // 2]
    for count in subjects:
        for number in tokens if count == 1 else [middle]:
            who = "1 subject" if count == 1 else f"{count} subjects"
            yield Form(f"{who}, {number} tokens", *_with_subjects(model, unet, device, count, number))
    layout = UNetLayout.from_comfy_config(model.model.model_config.unet_config)
    for name, kind, number in (
        (
            f"decoupled, {ADAPTER_TOKENS} tokens, projected at each step, both halves",
            _Projected,
            ADAPTER_TOKENS,
        ),
        (f"decoupled, {middle} tokens, kept, positive rows", _Kept, middle),
    ):
        adapted = model.clone()
        for address, site in layout.comfy_sites.items():
            patch = kind(number, unet["context_dim"], site.inner_dim, model.model.get_dtype(), device)
            adapted.set_model_attn2_replace(patch, *address)
        yield Form(name, adapted, plain)


def _with_subjects(
    model: Any, unet: dict[str, Any], device: torch.device, count: int, tokens: int
) -> tuple[Any, list[Any]]:
    """The MODEL with subjects of random tokens, and a prompt that carries them."""
    sites = UNetLayout.from_comfy_config(model.model.model_config.unet_config).sites
    config = SubjectEncoderConfig(
        vision_dim=16, token_dim=TOKEN_WIDTH, num_queries=tokens, width=16, depth=1, heads=1, head_dim=16,
        sites=sites,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = manage_encoder(SubjectEncoder(config), "random.safetensors")
    clip, names = load_world(SMALL_WORLD).clip, [f"person{number}" for number in range(count)]
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        drawn = torch.randn(tokens, TOKEN_WIDTH, generator=generator)
        subject = Subject(drawn, torch.zeros(tokens), "person", encoder.fingerprint)
        model, clip = apply_subject(model, clip, encoder, subject, SubjectSettings(name=name))
    prompt = "a photo of " + " and ".join(f"<{name}>" for name in names)
    ((_, entries),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return model, _conditioning(unet, device, seed=0, **entries)


class _Projected:
    """Decoupled cross-attention as IPAdapter_plus runs it: in the rows of both prompts, its keys and values
    projected at each step."""

    def __init__(self, tokens: int, width: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
        self.images = [torch.randn(1, tokens, width).to(device, dtype) for _ in range(2)]
        self.to_k, self.to_v = ((width**-0.5 * torch.randn(inner, width)).to(device, dtype) for _ in range(2))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        out: Tensor = _attend(q, k, v, extra_options)
        each = len(q) // len(extra_options["cond_or_uncond"])
        images = torch.cat(
            [self.images[number].expand(each, -1, -1) for number in extra_options["cond_or_uncond"]]
        )
        added = _attend(q, linear(images, self.to_k), linear(images, self.to_v), extra_options)
        return out + added * SCALE


class _Kept:
    """Decoupled cross-attention made as cheap as ours: in the positive rows, its keys and values kept."""

    def __init__(self, tokens: int, width: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
        self.key, self.value = (torch.randn(1, tokens, inner).to(device, dtype) for _ in range(2))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        out: Tensor = _attend(q, k, v, extra_options)
        each = len(q) // len(extra_options["cond_or_uncond"])
        for place, number in enumerate(extra_options["cond_or_uncond"]):
            if number == 0:
                here = slice(place * each, (place + 1) * each)
                key, value = (x.expand(each, -1, -1) for x in (self.key, self.value))
                out[here].add_(_attend(q[here], key, value, extra_options), alpha=SCALE)
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
    heads, precision = options["n_heads"], options["attn_precision"]
    return comfy_attention.optimized_attention(q, k, v, heads=heads, attn_precision=precision)


def _wall(draw: Callable[[Callable[[int], None]], None], steps: int, device: torch.device) -> float:
    """Milliseconds a step, of those after the first."""
    start = 0.0

    def after(step: int) -> None:
        nonlocal start
        if step == 0:
            _wait(device)
            start = time.perf_counter()

    draw(after)
    _wait(device)
    return 1e3 * (time.perf_counter() - start) / steps


def _counts(
    draw: Callable[[Callable[[int], None]], None], steps: int, device: torch.device
) -> tuple[float | None, int | None, int | None, int | None, int, float | None]:
    """A step's figures beside its time, `Step`'s from `kernels_ms` on; of the steps after the first."""
    cuda = device.type == "cuda"
    profiled = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])

    def after(step: int) -> None:
        if step == 0:
            _wait(device)
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            profiled.start()
        elif step == steps:
            profiled.stop()  # before what ends the sampling, which is no step's

    draw(after)
    _wait(device)
    names: list[str] = []
    spent = kernels = copies = 0.0
    for event in profiled.events() or ():
        if event.device_type.name == "CUDA":
            copied, cleared = event.name.startswith("Memcpy"), event.name.startswith("Memset")
            copies += event.name.startswith("Memcpy HtoD")
            kernels += not copied and not cleared
            spent += 0 if copied else event.time_range.elapsed_us() / 1e3
        else:
            names.append(event.name)
    items = round(names.count("aten::item") / steps)
    if not cuda:
        return None, None, None, None, items, None
    waits = sum(names.count(f"cuda{what}Synchronize") for what in ("Stream", "Device", "Event"))
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    return spent / steps, round(kernels / steps), round(copies / steps), round(waits / steps), items, peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
