"""What is told of a graph before it has run: which texts its encoders read."""

from __future__ import annotations

from typing import Any

import pytest
from test_nodes import nodes as ours  # noqa: F401  fixtures
from test_nodes import pack  # noqa: F401


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


CHAIN = {
    "1": node("CheckpointLoaderSimple", ckpt_name="x"),
    "2": node("NestedAttentionApplySubject", model=["1", 0], clip=["1", 1], word="person"),
    "3": node("LoraLoader", model=["2", 0], clip=["2", 1]),
    "4": node("NestedAttentionApplySubject", model=["3", 0], clip=["3", 1], word="pet"),
    "5": node("CLIPTextEncode", clip=["4", 1], text="a person"),
    "6": node("CLIPTextEncodeSDXL", clip=["2", 1], text_g="a house", text_l="a tree"),
    "7": node("CLIPTextEncode", clip=["1", 1], text="another CLIP's"),
    "8": node("KSampler", model=["4", 0], positive=["5", 0], negative=["6", 0]),
}


@pytest.fixture
def known(comfyui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's nodes and ours, as a server has them."""
    from types import SimpleNamespace

    import nodes
    from comfy_extras import nodes_clip_sdxl, nodes_model_merging

    for name, outputs in (
        ("NestedAttentionApplySubject", ("MODEL", "CLIP")),
        ("NestedAttentionMarkPrompt", ("CONDITIONING",)),
        ("CLIPTextEncodeSDXL", nodes_clip_sdxl.CLIPTextEncodeSDXL.RETURN_TYPES),
        ("Wildcards", ("MODEL", "CLIP", "STRING")),
        ("ModelSwitch", ("MODEL",)),
        ("AnySwitch", ("*",)),
        ("ComfySwitchNode", ("COMFY_MATCHTYPE_V3",)),  # of newer versions
    ):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, SimpleNamespace(RETURN_TYPES=outputs))
    blend = SimpleNamespace(RETURN_TYPES=("MODEL",), CATEGORY="someone/Model Merging")
    for name, kind in {**nodes_model_merging.NODE_CLASS_MAPPINGS, "BlendModels": blend}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, kind)


@pytest.mark.usefixtures("known")
def test_the_texts_that_are_encoded_with_a_subjects_clip() -> None:
    from nested_attention.hosts.comfy.graph import encoded_texts, is_negative

    assert sorted(encoded_texts(CHAIN) or ()) == ["a house", "a person", "a tree"]
    marking = {
        **CHAIN,
        "9": node("NestedAttentionMarkPrompt", clip=["4", 1], text="a pet", conditioning=["7", 0]),
    }
    assert "a pet" in (encoded_texts(marking) or ())
    assert is_negative(CHAIN, "6")
    assert not is_negative(CHAIN, "5")
    assert not is_negative(CHAIN, "7")
    assert encoded_texts({}) == []


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "other",
    [
        node("CLIPTextEncode", clip=["4", 1], text=["1", 0]),  # made by another node
        node("CLIPTextEncode", clip=["4", 1]),
        node("Wildcards", model=["4", 0], clip=["4", 1]),
        node("SomebodysEncoder", clip=["3", 1], text="a person"),  # who knows what it reads
    ],
)
def test_a_text_that_is_not_known_leaves_it_open(other: dict[str, Any]) -> None:
    from nested_attention.hosts.comfy.graph import encoded_texts

    assert encoded_texts({**CHAIN, "9": other}) is None


PLAIN = {**CHAIN, "8": node("KSampler", model=["1", 0], positive=["5", 0], negative=["6", 0])}
"""The chain with its last MODEL wire forgotten."""

OBSERVED = node("NestedAttentionObserve", model=["4", 0])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("graph", "personalised"),
    [
        ({**CHAIN, "9": OBSERVED, "8": node("KSampler", model=["9", 0])}, True),
        ({**CHAIN, "9": node("NestedAttentionObserve", model=["3", 0]), "4": {
            **CHAIN["4"], "inputs": {"model": ["9", 0], "clip": ["3", 1]}}}, True),
        ({**PLAIN, "9": OBSERVED, "10": node("NestedAttentionViewMaps", maps=["9", 1])}, False),
        ({**PLAIN, "9": OBSERVED, "10": node("LoraLoader", model=["9", 0])}, False),
        ({**PLAIN, "9": node("NestedAttentionObserve", model=["1", 0]),
          "8": node("KSampler", model=["9", 0])}, False),
        ({**PLAIN, "9": OBSERVED, "10": node("SomebodysPipe", model=["9", 0])}, True),
    ],
    ids=["sampled", "between two subjects", "dangling", "dangling LoRA", "another MODEL's", "a pipe"],
)  # fmt: skip
def test_observe_subjects_passes_its_model_on_and_samples_nothing(
    ours: dict[str, Any],  # noqa: F811
    graph: dict[str, Any],
    personalised: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import nodes

    from nested_attention.hosts.comfy.graph import samples_personalised

    for name in ("NestedAttentionObserve", "NestedAttentionViewMaps"):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, ours[name])
    assert samples_personalised(graph) is personalised
    assert samples_personalised(graph, "2") is personalised


SWITCHES = ["ModelSwitch", "AnySwitch", "ComfySwitchNode"]
MERGES = ["ModelMergeSimple", "ModelMergeSubtract", "ModelMergeAdd", "ModelMergeBlocks", "BlendModels"]

BESIDE = {
    "1": CHAIN["1"],
    "2": CHAIN["2"],
    "3": node("NestedAttentionApplySubject", model=["1", 0], clip=["2", 1], word="pet"),
    "7": node("CLIPTextEncode", clip=["3", 1], text="a person with a pet"),
}
"""Two MODELs with a subject each, and one CLIP with both."""


def sampling(model: list[Any], **more: Any) -> dict[str, Any]:
    more = {name[1:]: one for name, one in more.items()}
    return {**BESIDE, **more, "8": node("KSampler", model=model, positive=["7", 0])}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_between_models_is_no_merge(switch: str) -> None:
    from nested_attention.hosts.comfy.graph import merged_away

    assert merged_away(sampling(["4", 0], n4=node(switch, a=["2", 0], b=["3", 0], on=True)), "8") == set()
    # Which of its MODELs is merged, or whether any is, nobody knows.
    two = node(switch, a=["2", 0], b=["1", 0])
    lora = node("LoraLoader", model=["4", 0], clip=["3", 1])
    merge = node("ModelMergeSimple", model1=["1", 0], model2=["5", 0])
    assert merged_away(sampling(["6", 0], n4=two, n5=lora, n6=merge), "8") == set()
    first = node("ModelMergeSimple", model1=["2", 0], model2=["3", 0])
    assert merged_away(sampling(["5", 0], n4=first, n5=node(switch, a=["4", 0], b=["1", 0])), "8") == set()
    # A switch with one MODEL has no choice.
    one = node(switch, a=["2", 0], on=True)
    assert merged_away(sampling(["6", 0], n4=one, n5=lora, n6=merge), "8") == {"2"}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("merge", MERGES)
def test_models_are_merged_by_nodes_of_any_pack(merge: str) -> None:
    from nested_attention.hosts.comfy.graph import merged_away

    assert merged_away(sampling(["4", 0], n4=node(merge, a=["2", 0], b=["3", 0])), "8") == {"2", "3"}
    switch = node("ComfySwitchNode", on_true=["1", 0], on_false=["2", 0])
    both = sampling(["5", 0], n4=switch, n5=node(merge, a=["4", 0], b=["3", 0]))
    assert merged_away(both, "8") == {"3"}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_samples_nothing(switch: str) -> None:
    from nested_attention.hosts.comfy.graph import samples_personalised

    n4 = node(switch, a=["2", 0], b=["1", 0])
    assert samples_personalised(sampling(["4", 0], n4=n4))
    assert not samples_personalised(sampling(["1", 0], n4=n4))
