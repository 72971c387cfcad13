"""What a picture made with Apply Subject has, and has not, in common with one made without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

PROMPT = "a photo of a person on the beach"


@pytest.fixture(scope="module")
def base(world: Any) -> dict[str, Any]:
    """The graph without Apply Subject."""
    from tiny import encode, sample

    positive, negative = encode(world.clip, PROMPT), encode(world.clip, "bad, blurry")
    return {"positive": positive, "negative": negative, "latent": sample(world.model, positive, negative)}


def test_a_subject_shows_and_repeats(world: Any, base: dict[str, Any]) -> None:
    from tiny import carries, encode, same, sample, tokens_marked

    model, clip = world.apply(world.model, world.clip)
    positive, negative = encode(clip, PROMPT), encode(clip, "bad, blurry")
    assert tokens_marked(positive) == [5]
    assert torch.equal(positive[0][0], base["positive"][0][0])
    one = sample(model, positive, negative)
    assert carries(one, base["latent"])
    assert same(sample(model, positive, negative), one)
    other = sample(world.apply(world.model, world.clip, world.bob)[0], positive, negative)
    assert carries(other, one)


@pytest.mark.parametrize(
    "settings",
    [
        {"strength": 0.0},
        {"strength": 0.0, "when_missing": "error", "attention_scale": 4.0},
        {"start": 0.0, "end": 0.0},
        {"start": 1.0, "end": 1.0},
    ],
)
def test_off_is_bit_for_bit_off(world: Any, base: dict[str, Any], settings: dict[str, Any]) -> None:
    from tiny import encode, same, sample

    model, clip = world.apply(world.model, world.clip, **settings)
    assert same(sample(model, encode(clip, PROMPT), encode(clip, "bad, blurry")), base["latent"])
    assert same(sample(model, encode(clip, PROMPT), base["negative"]), base["latent"])


def test_an_unmarked_prompt_is_bit_for_bit_the_base_model(world: Any, base: dict[str, Any]) -> None:
    from tiny import encode, same, sample

    model, clip = world.apply(world.model, world.clip, when_missing="warn")
    plain = encode(world.clip, "a red house"), encode(world.clip, "bad")
    ours = encode(clip, "a red house"), encode(clip, "bad")
    expected = sample(world.model, *plain)
    assert same(sample(model, *ours), expected)
    assert same(sample(model, *plain), expected)
    assert same(sample(world.model, *ours), expected)


def test_steps_outside_start_and_end_are_untouched(world: Any, base: dict[str, Any]) -> None:
    from tiny import encode, same, sample

    def denoised(model: Any, positive: Any) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        sample(
            model, positive, base["negative"], steps=4, callback=lambda i, x0, x, n: seen.append(x0.clone())
        )
        return seen

    plain = denoised(world.model, base["positive"])
    late, clip = world.apply(world.model, world.clip, start=0.5)
    positive = encode(clip, PROMPT)
    steps = denoised(late, positive)
    assert same(steps[0], plain[0])
    assert same(steps[1], plain[1])
    assert not same(steps[2], plain[2])

    early = denoised(world.apply(world.model, world.clip, end=0.5)[0], positive)
    full = denoised(world.apply(world.model, world.clip)[0], positive)
    assert same(early[0], full[0])
    assert same(early[1], full[1])
    assert not same(early[3], full[3])


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"start": 0.1}, {"steps": 1}, "no step of it lies between start_percent 0.1 and end_percent 1."),
        ({"end": 0.5}, {"steps": 4, "denoise": 0.4}, "start_percent 0 and end_percent 0.5"),
        ({"start": 0.1}, {"steps": 8}, None),
        ({"start": 0.6}, {"steps": 8, "last_step": 4}, None),  # another sampler goes on from there
        ({"strength": 0.0, "start": 0.1}, {"steps": 1}, None),
    ],
)
def test_a_subject_that_no_step_counts_is_told(
    world: Any,
    base: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    options: dict[str, Any],
    said: str | None,
) -> None:
    from tiny import encode, same, sample

    model, clip = world.apply(world.model, world.clip, **settings)
    picture = sample(model, encode(clip, PROMPT), base["negative"], **options)
    if said is not None:
        assert same(picture, sample(world.model, base["positive"], base["negative"], **options))
    assert [said in record.getMessage() for record in caplog.records if said] == [True] * (said is not None)
    assert said is not None or not caplog.records


def test_a_node_that_runs_the_model_past_the_subjects_is_told(
    world: Any, base: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As a pack does that caches layers: it takes the model's own method, and no wrapper runs."""
    from tiny import encode, sample

    def past(apply: Any, given: Any) -> torch.Tensor:
        out: torch.Tensor = world.model.model._apply_model(
            given["input"], given["timestep"], **own(given["c"])
        )
        return out

    def own(c: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in c.items() if not name.startswith("nested_attention")}

    model, clip = world.apply(world.model, world.clip)
    model = model.clone()
    model.set_model_unet_function_wrapper(past)
    sample(model, encode(clip, PROMPT), base["negative"])
    assert ["another node runs the model past" in record.getMessage() for record in caplog.records] == [True]


def test_the_steps_at_start_and_at_end_themselves_count(world: Any) -> None:
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain

    base = world.model.model
    sigma = base.model_sampling.percent_to_sigma
    model, _ = world.apply(world.model, world.clip, start=0.2, end=0.6)
    chain = SubjectChain.of(model)
    assert chain is not None
    for percent, active in ((0.19, False), (0.2, True), (0.4, True), (0.6, True), (0.61, False)):
        assert chain._active(base, torch.tensor([sigma(percent)])) == ({1} if active else set()), percent


def test_two_subjects_queued_three_times_and_a_branch_after_the_first(
    world: Any, base: dict[str, Any]
) -> None:
    from tiny import carries, encode, same, sample, tokens_marked

    first, first_clip = world.apply(world.model, world.clip)
    alone = sample(first, encode(first_clip, PROMPT), base["negative"])

    both, both_clip = world.apply(first, first_clip, world.rex)
    positive = encode(both_clip, "a person with a pet on the beach")
    assert tokens_marked(positive) == [2, 5]
    pictures = [sample(both, positive, base["negative"]) for _ in range(3)]
    assert same(pictures[0], pictures[1])
    assert same(pictures[0], pictures[2])
    assert carries(
        pictures[0], sample(first, encode(first_clip, "a person with a pet on the beach"), base["negative"])
    )

    assert same(sample(first, encode(first_clip, PROMPT), base["negative"]), alone)
    assert same(
        sample(first, positive, base["negative"]),
        sample(first, encode(first_clip, "a person with a pet on the beach"), base["negative"]),
    )
    assert same(sample(world.model, base["positive"], base["negative"]), base["latent"])

    swapped, swapped_clip = world.apply(*world.apply(world.model, world.clip, world.rex), world.alice)
    again = sample(swapped, encode(swapped_clip, "a person with a pet on the beach"), base["negative"])
    assert not carries(again, pictures[0], threshold=2e-5)


def test_two_people_told_apart_by_name(world: Any, base: dict[str, Any]) -> None:
    from tiny import carries, encode, sample, tokens_marked

    chain = world.apply(world.model, world.clip, name="alice")
    model, clip = world.apply(*chain, world.bob, name="bob")
    ab = encode(clip, "<alice> left, <bob:man> right")
    assert tokens_marked(ab) == [1, 4]
    ba = encode(clip, "<bob> left, <alice:man> right")
    assert torch.equal(ab[0][0], ba[0][0])
    assert carries(sample(model, ab, base["negative"]), sample(model, ba, base["negative"]))


def test_one_set_of_wrappers_and_nothing_in_the_slots(world: Any) -> None:
    from comfy.patcher_extension import WrappersMP

    model, clip = world.apply(world.model, world.clip)
    model, clip = world.apply(model, clip, world.rex)
    model, clip = world.apply(model, clip, world.bob, name="bob")
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL):
        assert len(model.wrappers[kind]["nested_attention"]) == 1
    assert model.model_options["transformer_options"] == {}
    assert len(model.get_nested_additional_models()) == 3
    assert not world.model.wrappers
    assert not world.model.additional_models
    assert not world.model.attachments


def test_the_word_in_the_negative_prompt_changes_nothing(world: Any, base: dict[str, Any]) -> None:
    from tiny import carries, encode, same, sample

    model, clip = world.apply(world.model, world.clip)
    positive = encode(clip, PROMPT)
    expected = sample(model, positive, encode(world.clip, "an ugly person"))
    assert same(sample(model, positive, encode(clip, "an ugly person")), expected)

    negative_too, clip_too = world.apply(world.model, world.clip, apply_to_negative=True)
    plain = encode(world.clip, "a house")
    away = sample(negative_too, plain, encode(clip_too, "an ugly person"))  # in the negative prompt alone
    assert carries(away, sample(world.model, plain, encode(world.clip, "an ugly person")))
    assert carries(sample(negative_too, positive, encode(clip, "an ugly person")), expected)
    assert same(sample(negative_too, positive, encode(world.clip, "an ugly person")), expected)


@pytest.mark.composes("Conditioning Zero Out", order="prompt", note="as a negative it carries nothing")
def test_zero_out(world: Any) -> None:
    from nodes import ConditioningZeroOut
    from tiny import encode, same, sample

    model, clip = world.apply(world.model, world.clip)
    positive = encode(clip, PROMPT)
    (zero,) = ConditioningZeroOut().zero_out(positive)
    (plain,) = ConditioningZeroOut().zero_out(encode(world.clip, PROMPT))
    assert same(sample(model, positive, zero), sample(model, positive, plain))


def test_cfg_1_runs_the_positive_alone(world: Any, base: dict[str, Any]) -> None:
    from tiny import carries, encode, same, sample

    model, clip = world.apply(world.model, world.clip)
    positive = encode(clip, PROMPT)
    one = sample(model, positive, base["negative"], cfg=1.0)
    assert carries(one, sample(world.model, base["positive"], base["negative"], cfg=1.0))
    assert same(sample(model, positive, encode(clip, "a person"), cfg=1.0), one)


def test_batches(world: Any, base: dict[str, Any]) -> None:
    from tiny import carries, encode, sample

    model, clip = world.apply(world.model, world.clip)
    positive = encode(clip, PROMPT)
    three = sample(model, positive, base["negative"], batch=3)
    plain = sample(world.model, base["positive"], base["negative"], batch=3)
    for i in range(3):
        assert carries(three[i], plain[i])
    assert not carries(three[:1], sample(model, positive, base["negative"]), threshold=2e-5)


@pytest.mark.composes("Conditioning (Set Timestep Range)", order="prompt")
def test_prompts_combined_with_others_in_areas_masks_and_times(world: Any, base: dict[str, Any]) -> None:
    import nodes
    from node_helpers import conditioning_set_values
    from tiny import carries, encode, sample

    model, clip = world.apply(world.model, world.clip)
    long = ", ".join(["a house by the sea"] * 20)  # three chunks
    for other in ("a house", long):
        for change in (
            lambda c: c,
            lambda c: nodes.ConditioningSetArea().append(c, 32, 32, 16, 16, 1.0)[0],
            lambda c: conditioning_set_values(c, {"mask": torch.ones(1, 64, 64), "mask_strength": 0.7}),
            lambda c: nodes.ConditioningSetTimestepRange().set_range(c, 0.3, 1.0)[0],
        ):
            ours = change(encode(clip, PROMPT)) + encode(clip, other)
            plain = change(encode(world.clip, PROMPT)) + encode(world.clip, other)
            assert carries(
                sample(model, ours, encode(clip, long)), sample(world.model, plain, encode(world.clip, long))
            )


@pytest.mark.parametrize("lengths", [(1, 3), (3, 1), (2, 3), (1, 5)])
def test_prompts_of_other_lengths_run_together_or_apart(
    world: Any, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, int]
) -> None:
    """ComfyUI repeats the shorter context, and its marks, where both run in one batch."""
    from tiny import carries, encode, sample

    model, clip = world.apply(world.model, world.clip)
    positive, negative = (
        encode(clip, ", ".join([f"{subject} by the sea", *["grey house by the sea"] * (14 * chunks - 13)]))
        for subject, chunks in zip(("a person", "bad"), lengths, strict=True)
    )
    assert [c[0][0].shape[1] // 77 for c in (positive, negative)] == list(lengths)
    together = sample(model, positive, negative)
    monkeypatch.setattr(world.model.model, "memory_required", lambda *args, **kwargs: 1e20)
    assert not carries(sample(model, positive, negative), together, threshold=2e-5)
    plain, plain_negative = (
        [[context, {"pooled_output": e["pooled_output"]}] for context, e in c] for c in (positive, negative)
    )
    assert carries(together, sample(world.model, plain, plain_negative))


def test_concat_and_average_keep_the_marks_of_the_first(world: Any, base: dict[str, Any]) -> None:
    import nodes
    from tiny import carries, encode, sample, tokens_marked

    model, clip = world.apply(world.model, world.clip)
    to, other = encode(clip, PROMPT), encode(clip, "a house by the sea")
    (joined,) = nodes.ConditioningConcat().concat(to, other)
    (mean,) = nodes.ConditioningAverage().addWeighted(to, other, 0.8)
    for conditioning in (joined, mean):
        assert tokens_marked(conditioning) == [5]
        plain = [[context, {"pooled_output": entries["pooled_output"]}] for context, entries in conditioning]
        assert carries(
            sample(model, conditioning, base["negative"]), sample(world.model, plain, base["negative"])
        )
