"""Samplings in ComfyUI that are observed: the same pictures, and maps of every kind of pass."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

TWO = "<alice> and <bob:man> on the beach"

Observed = tuple[Any, Any]


@pytest.fixture
def observe() -> Callable[..., Observed]:
    from nested_attention.hosts.comfy.sampling.recorder import Recorder, observe
    from nested_attention.inspection.recording import Watch

    def on(model: Any, **watch: Any) -> Observed:
        recorder = Recorder(Watch(**{"layers": "all", **watch}))
        return observe(model, recorder), recorder

    return on


def left() -> Tensor:
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    return mask


def chain(world: Any, **alice: Any) -> tuple[Any, Any]:
    first = world.apply(world.model, world.clip, name="alice", **alice)
    return world.apply(*first, world.bob, name="bob")


def draw(model: Any, clip: Any, prompt: str = TWO, **options: Any) -> Tensor:
    from tiny import encode, sample

    return sample(model, encode(clip, prompt), encode(clip, "bad"), **options)


@pytest.mark.parametrize("options", [{}, {"cfg": 1.0}, {"batch": 3}, {"batch": 2, "cfg": 1.0}], ids=str)
@pytest.mark.parametrize(
    "alice", [{}, {"region": left(), "bounded": True, "bound_self_attention": True}, {"region_mode": "auto"}],
    ids=["plain", "region", "auto"],
)  # fmt: skip
def test_pictures_are_the_same_to_the_bit(
    world: Any, observe: Callable[..., Observed], alice: dict[str, Any], options: dict[str, Any]
) -> None:
    model, clip = chain(world, **alice)
    plain = draw(model, clip, **options)
    watched, recorder = observe(model)
    assert torch.equal(draw(watched, clip, **options), plain)
    assert torch.equal(draw(watched, clip, **options), plain)
    seen = recorder.observation()
    assert seen.pictures == options.get("batch", 1) and seen.steps == 3
    titles = [(one.picture, one.title) for one in seen.subjects]
    assert titles == [(n, title) for n in range(seen.pictures) for title in ("alice", "bob")]
    for one in seen.subjects:
        assert set(one.maps) == {site.name for site in world.person.config.sites}
        assert all(not bool(x.isnan().any()) for x in one.maps.values())
        assert torch.allclose(one.drawn.sum(0), torch.ones_like(one.drawn[0]), atol=1e-4)
        assert one.weights.sum(0).max() <= 1 + 1e-4


def test_off_is_no_work_and_the_run_leaves_nothing(world: Any, observe: Callable[..., Observed]) -> None:
    model, clip = chain(world)
    watched, recorder = observe(model)
    before = dict(watched.model_options["transformer_options"])
    draw(watched, clip)
    assert watched.model_options["transformer_options"] == before
    assert model.model_options["transformer_options"] == {}
    seen = weakref.ref(recorder.observation())
    draw(watched, clip)
    gc.collect()
    assert seen() is None  # each sampling is in place of the one before


def test_a_clone_and_a_further_subject_keep_the_observer(
    world: Any, observe: Callable[..., Observed]
) -> None:
    watched, recorder = observe(world.apply(world.model, world.clip, name="alice")[0])
    clip = world.apply(world.model, world.clip, name="alice")[1]
    model, clip = world.apply(watched.clone(), clip, world.bob, name="bob")
    draw(model, clip)
    assert [one.title for one in recorder.observation().subjects] == ["alice", "bob"]


def test_an_interrupted_sampling_is_dropped(world: Any, observe: Callable[..., Observed]) -> None:
    from nested_attention.errors import NestedAttentionError

    model, clip = chain(world)
    watched, recorder = observe(model)
    draw(watched, clip)

    def stop(*_: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        draw(watched, clip, callback=stop)
    with pytest.raises(NestedAttentionError, match="nothing was observed"):
        recorder.observation()


def test_steps_layers_and_off_square_pictures(world: Any, observe: Callable[..., Observed]) -> None:
    import comfy.sample
    from tiny import encode

    model, clip = chain(world)
    noise = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    conds = encode(clip, TWO), encode(clip, "bad")

    def run(model: Any) -> Tensor:
        return comfy.sample.sample(model, noise, 6, 4.0, "heun", "normal", *conds, 0 * noise, seed=0)

    watched, recorder = observe(model, layers="decoder", start=0.5)
    assert torch.equal(run(watched), run(model))
    seen = recorder.observation()
    assert seen.spans == ((3, 3), (4, 4), (5, 5))  # heun evaluates most steps twice
    for one in seen.subjects:
        assert one.maps and all(
            s.startswith("up_blocks.") and ".transformer_blocks.0." in s for s in one.maps
        )
        assert {h * 20 for h, _ in one.grids.values()} == {w * 12 for _, w in one.grids.values()}


def test_a_prompt_in_an_area_is_seen_there_alone(world: Any, observe: Callable[..., Observed]) -> None:
    import nodes
    from tiny import encode, sample

    model, clip = world.apply(world.model, world.clip)
    watched, recorder = observe(model)
    area = nodes.ConditioningSetArea().append(encode(clip, "a person"), 64, 128, 64, 0, 1.0)[0]
    sample(watched, area + encode(clip, "a house"), encode(clip, "bad"), size=16)
    (one,) = recorder.observation().subjects
    site, grid = next((s, g) for s, g in one.grids.items() if s.startswith("up_blocks.1"))
    word = one.maps[site][0, 0]
    # the area is the right half; the left was never seen
    assert grid == (8, 8)
    assert not word[:, :4].any() and bool((word[:, 4:] > 0).all())


@pytest.mark.parametrize("way", ["deep shrink", "area after the whole", "grows"])
def test_layers_whose_grid_changes_while_sampling_are_seen(
    world: Any, observe: Callable[..., Observed], way: str
) -> None:
    import comfy.samplers
    import nodes
    from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
    from tiny import encode

    model, clip = chain(world)
    positive, sampler, steps = encode(clip, TWO), comfy.samplers.sampler_object("euler"), 4
    if way == "deep shrink":
        model = PatchModelAddDownscale.execute(model, 2, 2.0, 0.0, 0.5, True, "bicubic", "bicubic")[0]
    elif way == "area after the whole":
        area = nodes.ConditioningSetArea().append(positive, 80, 64, 0, 0, 1.0)[0]
        in_time = nodes.ConditioningSetTimestepRange().set_range
        house = encode(clip, "a house")
        positive = in_time(positive, 0.0, 0.5)[0] + in_time(area + house, 0.5, 1.0)[0]
    else:
        sampler = SamplerLCMUpscale.execute(1.5, -1, "bilinear")[0]

    def run(model: Any) -> Tensor:
        noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(0))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, encode(clip, "bad"))
        guider.set_cfg(4.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        torch.manual_seed(0)
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)

    plain, (watched, recorder) = run(model), observe(model)
    assert torch.equal(run(watched), plain)
    seen = recorder.observation()
    assert [one.title for one in seen.subjects] == ["alice", "bob"]
    assert seen.spans == ((0, 0), (1, 1), (2, 2), (3, 3))
    for one in seen.subjects:
        assert all(len(x) == steps and not bool(x.isnan().any()) for x in one.maps.values())
        if way == "deep shrink":  # the grids of the steps that are not shrunk
            assert set(one.grids.values()) == {(6, 8), (3, 4)}


def test_tiles_are_found_and_what_changes_them_is_refused(
    world: Any, observe: Callable[..., Observed]
) -> None:
    from nested_attention.errors import NestedAttentionError

    def tiled(change: float) -> Any:
        def run(apply_model: Any, args: dict[str, Any]) -> Tensor:
            x, out = args["input"], torch.zeros_like(args["input"])
            for start in (0, 8):
                part = x[..., start : start + 8] + change
                out[..., start : start + 8] = apply_model(part, args["timestep"], **args["c"])
            return out

        return run

    model, clip = chain(world)
    watched, recorder = observe(model)
    watched.set_model_unet_function_wrapper(tiled(0.0))
    draw(watched, clip, size=16)
    one = recorder.observation().subjects[0]
    assert {grid for site, grid in one.grids.items() if site.startswith("up_blocks.1")} == {(16, 16)} or all(
        h * 2 == w * 2 for h, w in one.grids.values()
    )
    assert all(not bool((x[:, 0] == 0).any()) for x in one.maps.values())
    watched.set_model_unet_function_wrapper(tiled(1e-3))
    with pytest.raises(NestedAttentionError, match="Observe Subjects: .*switch Observe Subjects off"):
        draw(watched, clip, size=16)


def test_values_are_the_mechanisms_own(world: Any, observe: Callable[..., Observed]) -> None:
    """Of the layer as it ran, with the subjects as they were bound."""
    from nested_attention.attention import text_weights
    from nested_attention.hosts.comfy.sampling import observing

    caught: list[Any] = []
    original = observing.SamplingRun.show
    model, clip = world.apply(world.model, world.clip)
    watched, recorder = observe(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            observing.SamplingRun, "show", lambda self, layer: caught.append(layer) or original(self, layer)
        )
        draw(watched, clip, "a person", steps=1)
    (one,) = recorder.observation().subjects
    assert caught
    for layer in caught:
        (shown,) = layer.subjects
        (row,) = shown.rows
        bound = shown.bind()
        probs = text_weights(layer.query, layer.key, [bound], heads=layer.heads)[row]
        expected = probs[..., shown.mask[row]].sum(-1).mean(0)
        found = one.maps[layer.site][0, 0].flatten()
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_what_a_negative_prompt_attends_is_not_in_the_picture(
    world: Any, observe: Callable[..., Observed]
) -> None:
    from tiny import encode, sample

    seen = []
    for applied in (False, True):
        model, clip = chain(world, apply_to_negative=applied)
        watched, recorder = observe(model)
        sample(watched, encode(clip, TWO), encode(clip, "<alice> <alice>"), steps=1)
        seen.append(recorder.observation().subjects[0])
    for site, maps in seen[0].maps.items():
        torch.testing.assert_close(seen[1].maps[site], maps, rtol=1e-4, atol=1e-5)


def test_rows_that_another_pack_adds_are_refused(world: Any, observe: Callable[..., Observed]) -> None:
    from nested_attention.errors import NestedAttentionError

    def doubled(n: Tensor, context: Tensor, value: Tensor, options: Any) -> tuple[Tensor, ...]:
        return n.repeat(2, 1, 1), context.repeat(2, 1, 1), value.repeat(2, 1, 1)

    model, clip = world.apply(world.model, world.clip)
    watched, _ = observe(model)
    watched.set_model_attn2_patch(doubled)
    watched.set_model_attn2_output_patch(lambda n, options: n[: len(n) // 2])
    with pytest.raises(NestedAttentionError, match="adds rows of its own.*switch Observe Subjects off"):
        draw(watched, clip, "a person")


class TestNodes:
    """Observe Subjects and View Subject Maps."""

    @pytest.fixture
    def temp(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        import folder_paths

        monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
        return tmp_path

    def view(self, maps: Any, pictures: int = 2, **more: Any) -> Any:
        from nested_attention.hosts.comfy import view_maps

        image = torch.rand(pictures, 64, 48, 3, generator=torch.Generator().manual_seed(0))
        return view_maps(maps, image, **{"points": "", "layers": "", "steps": "", **more})

    def observed(self, world: Any, **more: Any) -> Any:
        from nested_attention.hosts.comfy import observe_subjects
        from nested_attention.inspection.recording import Watch

        model, clip = chain(world)
        watched, maps = observe_subjects(model, Watch(layers="all"), on=True, preview=False)
        draw(watched, clip, batch=2, **more)
        return maps

    def test_pictures_and_document_are_of_every_subject_and_picture(self, world: Any, temp: Any) -> None:
        import json

        from nested_attention.hosts.comfy import maps_ui

        document, *outputs = self.view(self.observed(world), points="0.5, 0.25; 0.1 0.9")
        word, change, values, tokens, queries = outputs
        assert word.shape == change.shape == (2, 64, 48, 3) and not torch.equal(word, change)
        assert len(values) == len(tokens) == 2 and len(queries) == 1
        assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in outputs)
        assert [[one["title"] for one in p["subjects"]] for p in document["pictures"]] == [
            ["alice", "bob"]
        ] * 2
        assert document["pictures"][1]["subjects"][0]["points"] == [[0.5, 0.25], [0.1, 0.9]]
        ((file,),) = maps_ui(document)["nested_attention_maps"]
        assert json.loads((temp / file["filename"]).read_text(encoding="utf-8")) == document

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"pictures": 3}, "there are 3 pictures, and the sampling that was observed drew 2"),
            ({"points": "0.5"}, "points has '0.5'; expected x, y"),
            ({"points": "0.5, 1.5"}, "points has '0.5, 1.5'"),
            ({"steps": "0-3"}, "steps is '0-3'; expected a step such as 5"),
            ({"layers": "mid_blcks"}, "no map has layers 'mid_blcks'.*there are layers.*mid_block"),
            ({"steps": "9"}, "no map has layers '' and steps"),
        ],
    )
    def test_what_cannot_be_shown_is_said(self, world: Any, more: dict[str, Any], said: str) -> None:
        from nested_attention.errors import NestedAttentionError

        with pytest.raises(NestedAttentionError, match=said):
            self.view(self.observed(world, steps=2), **more)

    def test_off_passes_the_model_on_and_says_so_where_maps_are_asked_for(self, world: Any) -> None:
        from nested_attention.errors import NestedAttentionError
        from nested_attention.hosts.comfy import observe_subjects
        from nested_attention.inspection.recording import Watch

        model, _ = chain(world)
        passed, maps = observe_subjects(model, Watch(), on=False, preview=True)
        assert passed is model
        with pytest.raises(NestedAttentionError, match="Observe Subjects is switched off"):
            self.view(maps)

    def test_a_model_without_a_subject_has_no_maps(self, world: Any) -> None:
        """Apply Subject's MODEL wire goes past Observe Subjects, or the sampler."""
        from nested_attention.errors import NestedAttentionError
        from nested_attention.hosts.comfy import observe_subjects
        from nested_attention.inspection.recording import Watch

        watched, maps = observe_subjects(world.model, Watch(), on=True, preview=False)
        draw(watched, world.clip)
        with pytest.raises(NestedAttentionError, match="used a MODEL that is observed and carries a subject"):
            self.view(maps)

    def test_the_preview_is_sent_for_every_step_that_is_over(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from nested_attention.hosts.comfy import inspect
        from nested_attention.inspection.recording import Watch

        sent: list[dict[str, Any]] = []
        monkeypatch.setattr(inspect, "send", lambda event, data: sent.append(data))
        model, clip = chain(world)
        plain = draw(model, clip, steps=4)
        watched, _ = inspect.observe_subjects(model, Watch(), on=True, preview=True)
        assert torch.equal(draw(watched, clip, steps=4), plain)
        assert [(one["step"], one["steps"]) for one in sent] == [(0, 4), (1, 4), (2, 4), (3, 4)]
        assert all([s["title"] for s in one["subjects"]] == ["alice", "bob"] for one in sent)

    def test_the_preview_is_sent_from_the_threads_of_other_gpus(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They do not know which node is being run."""
        from concurrent.futures import ThreadPoolExecutor

        from comfy_execution.utils import CurrentNodeContext

        from nested_attention.hosts.comfy import inspect
        from nested_attention.hosts.comfy.notices import running_node
        from nested_attention.inspection.recording import Watch

        sent: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(inspect, "send", lambda event, data: sent.append((running_node(), data)))
        model, clip = chain(world)
        with CurrentNodeContext("a run", "5"):
            model, _ = inspect.observe_subjects(model, Watch(), on=True, preview=True)

        with ThreadPoolExecutor(1) as thread:

            def elsewhere(apply_model: Any, args: dict[str, Any]) -> Tensor:
                run = torch.no_grad()(apply_model)  # as those threads run it
                return thread.submit(run, args["input"], args["timestep"], **args["c"]).result()

            model.set_model_unet_function_wrapper(elsewhere)
            with CurrentNodeContext("a run", "7"):
                draw(model, clip, steps=3)
        assert [(node, one["node"], one["step"]) for node, one in sent] == [("7", "5", n) for n in range(3)]

    def test_references_are_looked_at_when_somebody_asks(self, world: Any) -> None:
        """And a subject of a file, or an averaged one, has none."""
        from nested_attention.hosts.comfy import encode_subject

        class Vision:
            def encode_image(self, pictures: Tensor) -> dict[str, Tensor]:
                return {"last_hidden_state": torch.randn(len(pictures), 10, 24)}

        handle = world.person
        subject = encode_subject(handle, Vision(), torch.rand(2, 40, 30, 3), (1.0, 0.5))
        assert len(subject.references) == 2
        first = subject.references[0]
        assert first is not None and first.looks is not None and first.picture.shape == (30, 30, 3)
        maps = first.looks()
        assert maps.shape == (6, 3, 3) and torch.allclose(maps.sum((1, 2)), torch.ones(6))
        assert maps is first.looks()
        assert encode_subject(handle, Vision(), torch.rand(2, 40, 30, 3), average=True).references == ()


def test_nodes_before_another_are_told_nearest_first() -> None:
    from nested_attention.hosts.comfy.graph import nearest_first

    graph = {
        "1": {"inputs": {}}, "2": {"inputs": {"latent": ["1", 0]}}, "3": {"inputs": {"latent": ["2", 0]}},
        "4": {"inputs": {"samples": ["3", 0], "seed": 5}}, "5": {"inputs": {"a": ["2", 0], "b": ["1", 1]}},
    }  # fmt: skip
    assert list(nearest_first(graph, "4")) == ["3", "2", "1"]
    assert list(nearest_first(graph, "5")) == ["2", "1"]
    assert list(nearest_first(graph, "1")) == []
