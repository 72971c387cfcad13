"""What a subject costs while ComfyUI samples: no projection, nothing read on the host, no recompilation, and
nothing at all where it is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_reads import NoHostReads, OwnHostWork

PROMPT = "a photo of a person on the beach"
STEPS = 4


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often what costs something is called from now on."""
    from nested_attention.encoder import SiteProjection
    from nested_attention.hosts.comfy.sampling import layer, slots

    counts = {"projections": 0, "layers": 0, "masks read": 0}

    def counted(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(SiteProjection, "forward", "projections")
    counted(layer, "add_correction", "layers")  # whichever form it is
    counted(layer, "nested", "layers")
    counted(slots, "read_rows", "masks read")
    return counts


def test_a_subject_is_projected_once_and_its_masks_are_read_once_a_sampling(
    world: Any, calls: dict[str, int]
) -> None:
    from tiny import encode, make_subject, sample

    model, clip = world.apply(world.model, world.clip, make_subject(world.person, seed=901))
    sites = len(world.person.config.sites)
    assert calls == {"projections": sites, "layers": 0, "masks read": 0}
    positive, negative = encode(clip, PROMPT), encode(clip, "bad")
    sample(model, positive, negative, steps=STEPS)
    assert calls == {"projections": sites, "layers": STEPS * sites, "masks read": 1}
    both, both_clip = world.apply(*world.apply(world.model, world.clip), world.rex)
    sample(both, encode(both_clip, "a person with a pet"), negative, steps=1)
    assert calls["layers"] == (STEPS + 1) * sites  # one call a site, however many subjects


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"strength": 0.0}, 0),
        ({"start": 0.0, "end": 0.0}, 0),
        ({"start": 0.5}, STEPS - 2),
        ({"end": 0.5}, 2),
        ({"end": 0.5, "injection": "anchored"}, 2),
    ],
)
def test_off_is_no_work(world: Any, calls: dict[str, int], settings: dict[str, Any], steps: int) -> None:
    from tiny import encode, sample

    model, clip = world.apply(world.model, world.clip, **settings)
    calls["projections"] = 0
    sample(model, encode(clip, PROMPT), encode(clip, "bad"), steps=STEPS)
    sites = len(world.person.config.sites)
    assert calls == {"projections": 0, "layers": steps * sites, "masks read": min(steps, 1)}


@pytest.mark.parametrize("injection", ["nested", "anchored", "everywhere"])
def test_the_layers_read_nothing_on_the_host(
    world: Any, injection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import carries, encode, sample

    from nested_attention.hosts.comfy.sampling.layer import NestedLayer

    passes = []
    original = NestedLayer.__call__

    def watched(self: NestedLayer, *args: Any) -> Any:
        passes.append(self.site)
        with NoHostReads():
            return original(self, *args)

    chosen = {"injection": injection}
    model, clip = world.apply(*world.apply(world.model, world.clip, **chosen), world.rex, **chosen)
    positive, negative = encode(clip, "a person with a pet"), encode(clip, "bad")
    expected = sample(model, positive, negative)
    monkeypatch.setattr(NestedLayer, "__call__", watched)
    assert torch.equal(sample(model, positive, negative), expected)
    assert passes
    assert carries(expected, sample(world.model, positive, negative))


@pytest.mark.parametrize("cfg", [4.0, 1.0])
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("injection", ["nested", "anchored"])
def test_after_the_first_step_nothing_is_read_on_the_host_or_copied_to_the_device(
    world: Any, injection: str, placed: bool, cfg: float
) -> None:
    from tiny import encode, make_subject, sample

    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    settings = {"region": mask, "bounded": True, "bound_self_attention": True} if placed else {}
    model, clip = world.apply(
        world.model, world.clip, make_subject(world.person, seed=3, images=2), injection=injection, **settings
    )
    model, clip = world.apply(model, clip, world.rex, **({"region": 1 - mask} if placed else {}))
    positive, negative = encode(clip, "a person with a pet"), encode(clip, "bad")
    done: list[tuple[int, int]] = []
    with OwnHostWork() as work:
        sample(
            model, positive, negative, cfg=cfg, steps=STEPS,
            callback=lambda *_: done.append((len(work.reads), len(work.copies))),
        )  # fmt: skip
    assert len(done) == STEPS and done[0][1] > 0  # the first step does read and copy
    assert done[1:] == done[:1] * (STEPS - 1), (work.reads[done[0][0] :], work.copies[done[0][1] :])


@pytest.mark.slow
def test_a_compiled_model_has_no_break_of_ours_and_compiles_once(world: Any) -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from tiny import encode, make_model, sample
    from torch._dynamo.testing import CompileCounter
    from torch._dynamo.utils import counters

    def compiled(subject: bool) -> tuple[torch.Tensor, list[int], dict[str, int]]:
        torch._dynamo.reset()
        counters.clear()
        counter, frames = CompileCounter(), []
        model, clip = make_model(), world.clip
        if subject:
            model, clip = world.apply(model, clip)
        model = model.clone()
        set_torch_compile_wrapper(model, backend=counter)
        picture = sample(
            model, encode(clip, PROMPT), encode(clip, "bad"), steps=5,
            callback=lambda *_: frames.append(counter.frame_count),
        )  # fmt: skip
        return picture, frames, dict(counters["graph_break"])

    _, _, theirs = compiled(subject=False)
    picture, frames, breaks = compiled(subject=True)
    assert frames[0] > 0
    assert frames[1:] == [frames[1]] * (len(frames) - 1), frames
    ours = {reason for reason in breaks if reason not in theirs}
    assert not ours
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11):  # before, ComfyUI's own are counted anew
        assert sum(breaks.values()) <= sum(theirs.values())
    model, clip = world.apply(make_model(), world.clip)
    torch._dynamo.reset()
    torch.testing.assert_close(
        picture, sample(model, encode(clip, PROMPT), encode(clip, "bad"), steps=5), rtol=1e-4, atol=1e-4
    )
