"""What subjects cost in ComfyUI: pictures of the small world, the nodes' own work, and a full-width encoder.

`bench/in_comfyui.py` runs these in a process of its own.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sample
import torch

from ...avatars.comfy.world import load_world
from ...avatars.drawing.references import held_out, reference_picture
from ...errors import NestedAttentionError
from ...hosts.comfy.apply import apply_subject
from ...hosts.comfy.encoding.memory import load_encoder_for_comfy, subject_values
from ...hosts.comfy.encoding.pictures import encode_subject
from ...hosts.comfy.sampling.chain import SubjectChain
from ...paths import SMALL_WORLD
from ...settings import SubjectSettings
from ...subject import Subject
from ..timing import Clock, interleaved


def pictures(*, repeats: int, clock: Clock, counts: tuple[int, ...], steps: int) -> dict[str, Any]:
    """Seconds per picture with each number of subjects, interleaved, and of Encode and Apply Subject.

    Each subject is another person and has a name of its own in one prompt.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    world = load_world(SMALL_WORLD)
    encoder = load_encoder_for_comfy(SMALL_WORLD / "person_encoder.safetensors")
    names = [f"person{chr(ord('a') + i)}" for i in range(max(counts))]
    subjects: list[Subject] = []
    encoding: list[float] = []
    applying: list[float] = []
    again: list[float] = []
    models, model, clip = {0: world.model}, world.model, world.clip
    for number, name in enumerate(names):
        pixels = torch.from_numpy(reference_picture(held_out("person", number)).copy())
        start = now()
        subjects.append(encode_subject(encoder, world.clip_vision, pixels[None].float() / 255))
        encoding.append(now() - start)
        for taken in (applying, again):  # the second time, its keys and values are there
            start = now()
            applied = apply_subject(model, clip, encoder, subjects[-1], SubjectSettings(name=name))
            taken.append(now() - start)
        model, clip = applied
        models[number + 1] = model
    prompt = "a photo of " + " and ".join(f"<{name}>" for name in names) + " in a forest"
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
    plain = [[context, {"pooled_output": entries["pooled_output"]}] for context, entries in positive]

    def draw(count: int) -> None:
        shape = (1, world.model.model.latent_format.latent_channels, 16, 16)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        comfy.sample.sample(
            models[count], noise, steps, 3.0, "euler", "simple", positive if count else plain, negative,
            torch.zeros_like(noise), seed=0, disable_pbar=True,
        )  # fmt: skip

    calls = {str(count): partial(draw, count) for count in counts}
    with torch.inference_mode():
        timings = interleaved(calls, repeats=repeats, clock=clock)
    patchers = SubjectChain.of(model)._patchers()  # type: ignore[union-attr]
    return {
        "steps": steps,
        "clock": clock,
        "seconds per picture": {
            count: [1e-3 * x for x in (one.median, one.low, one.high)] for count, one in timings.items()
        },
        "encode subject": statistics.median(encoding),
        "apply subject, first": statistics.median(applying),
        "apply subject, again": statistics.median(again),
        "bytes of a subject in use": patchers[0].model_size(),
        "bytes of a subject on disk": subjects[0].tokens.nbytes + subjects[0].token_bias.nbytes,
        "tokens": len(subjects[0].tokens),
    }


def loading(*, path: str, tokens: int, width: int) -> dict[str, Any]:
    """An encoder from a file, and the keys and values of a subject of so many tokens, as Load Subject Encoder
    and Apply Subject make them; with the memory that takes at its peak beside what the process had."""
    before, wall, cpu = _resident(), time.perf_counter(), time.process_time()
    handle = load_encoder_for_comfy(path)
    loaded = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    subject = Subject(
        torch.randn(tokens, width, generator=generator), torch.zeros(tokens), "person", handle.fingerprint
    )
    device = torch.device("cpu")
    values = subject_values(handle, subject, dtype=torch.float16, load_device=device, offload_device=device)
    done = time.perf_counter()
    return {
        "seconds": done - wall,
        "seconds to load": loaded - wall,
        "CPU seconds": time.process_time() - cpu,
        "file bytes": Path(path).stat().st_size,
        "subject bytes": values.model_size(),
        "peak bytes": _peak() - before,
        "sites": len(handle.config.sites),
        "tokens": tokens,
    }


def _resident() -> int:
    """Bytes of memory that the process has now, files it has mapped included."""
    return _status("VmRSS")


def _peak() -> int:
    """The most it has had. Not ru_maxrss, which remembers the process that this one was started from."""
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise NestedAttentionError(
            "bench: the memory of a process is read from /proc/self/status, which this system lacks; run "
            "the part 'loading' on Linux"
        ) from error
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))
