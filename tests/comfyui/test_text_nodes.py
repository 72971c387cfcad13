"""Text-encode nodes, stock and foreign, and what lies between Apply Subject and them: all carry the
subject."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

WEIGHTED = "((a (person:1.3) by (the (old sea):0.7)))"
CASES = [
    "a photo of a person",
    WEIGHTED,
    r"a person \(smiling\), a \(person\)",
    "(person:1.2), (person:0.5) and person",
    "person's hat, 'person', persons and 1person, person",
    "grey house by the sea, " * 13 + "a person, a person in a (big (red:1.2) house:0.9) with a person",
    "grey house by the sea, " * 30 + "(a person by the sea:1.1)",
    "a\nperson\n",
]


def rows_that_change(clip: Any, text: str, word: str, other: str) -> list[int]:
    """First row of each text model's context, chunk by chunk, that another word changes: CLIP is causal."""
    contexts = [clip.encode_from_tokens(clip.tokenize(t)) for t in (text, text.replace(word, other, 1))]
    return [int(at) for at in (contexts[0] - contexts[1]).abs().sum(-1)[0].nonzero()[:1]]


@pytest.mark.parametrize("text", CASES)
def test_marks_are_where_the_text_encoder_reads_the_word(world: Any, text: str) -> None:
    from tiny import encode, tokens_marked

    _, clip = world.apply(world.model, world.clip)
    marked = tokens_marked(encode(clip, text))
    ids = [t[0] for chunk in world.clip.tokenize(text)["g"] for t in chunk]
    (person,) = (t[0] for t in world.clip.tokenize("person")["g"][0][1:2])
    assert [ids[at] for at in marked] == [person] * len(marked)
    followed = [at for at, i in enumerate(ids) if i == person]
    assert marked == [at for at in followed if "1person" not in text or at != followed[-2]]
    if "1person" not in text:
        assert rows_that_change(world.clip, text, "person", "dog")[0] == marked[0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("un nin\u0303o, e\u0301 Nin\u0303o a\u0301 (nin\u0303o:1.2)", "ni\u00f1o"),
        ("a ＜alice：woman＞ and a person", "person"),
        ("एक लड़का और लड़के और लड़का", "लड़का"),
        ("1person, a_person, person\u0301, person", "person"),
    ],
)
def test_words_beyond_ascii_are_marked_where_they_are_read(world: Any, text: str, word: str) -> None:
    from tiny import encode, tokens_marked

    _, clip = world.apply(world.model, world.clip, word=word, name="alice")
    carrier = "woman" if "＜" in text else word
    wanted = [t[0] for t in world.clip.tokenize(carrier)["g"][0]]
    last = wanted[wanted.index(49407) - 1]
    read = text.replace("＜alice：woman＞", "woman")
    ids = [t[0] for chunk in world.clip.tokenize(read)["g"] for t in chunk]
    places = [at for at, token in enumerate(ids) if token == last]
    assert tokens_marked(encode(clip, text)) == (places[-1:] if "1person" in text else places)


@pytest.mark.parametrize("text", ["person " * 600, "<alice> and <rex>, a person. " * 200, "a house " * 300])
def test_a_prompt_is_tokenised_twice_at_most(world: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sd
    from tiny import tokens_marked

    asked: list[str] = []
    plain = comfy.sd.CLIP.tokenize

    def counting(self: Any, text: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(text)
        return plain(self, text, *args, **kwargs)

    model, clip = world.apply(world.model, world.clip, name="alice")
    _, clip = world.apply(model, clip, world.rex, name="rex")
    monkeypatch.setattr(comfy.sd.CLIP, "tokenize", counting)
    tokens = clip.tokenize(text)
    assert sum(map(len, asked)) < 2 * len(text) + 200
    monkeypatch.undo()

    # The same word over and over is one object: a long prompt does not fill the memory.
    noted = [entry[0] for chunks in tokens.values() for chunk in chunks for entry in chunk]
    assert len({id(token) for token in noted if hasattr(token, "note")}) <= 2 * (1 + 2)
    marked = tokens_marked(clip.encode_from_tokens_scheduled(tokens))
    assert len(marked) == text.count("<") or len(marked) == text.count("person")


def test_words_of_several_tokens_are_carried_by_the_last(world: Any) -> None:
    from tiny import encode

    from nested_attention.hosts.comfy.prompts.marks import KEY

    _, clip = world.apply(world.model, world.clip, word="Xylophonist   woman")
    ids = [t[0] for t in world.clip.tokenize("an xylophonist woman")["g"][0]]
    end = ids.index(49407)
    codes = encode(clip, "an xylophonist\nwoman")[0][1][KEY].codes[0].tolist()
    assert end > 4
    assert codes[: end + 1] == [0, 0, *[3] * (end - 3), 2, 0]


def test_tokens_stay_what_other_code_takes_them_for(world: Any) -> None:
    _, clip = world.apply(world.model, world.clip)
    for text in CASES:
        ours, plain = clip.tokenize(text), world.clip.tokenize(text)
        assert ours == plain
        assert clip.tokenize(text, return_word_ids=True) == world.clip.tokenize(text, return_word_ids=True)
        for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):  # noqa: S301
            assert torch.equal(clip.marks(again).codes, clip.marks(ours).codes)
        assert torch.equal(clip.encode_from_tokens(ours), world.clip.encode_from_tokens(plain))


def embeddings(folder: Path) -> None:
    from safetensors.torch import save_file
    from tiny import WIDTH_G, WIDTH_L

    torch.manual_seed(0)
    save_file(
        {"clip_l": torch.randn(3, WIDTH_L), "clip_g": torch.randn(3, WIDTH_G)}, folder / "style.safetensors"
    )
    save_file({"emb_params": torch.randn(2, WIDTH_L)}, folder / "small.safetensors")


@pytest.mark.composes("Textual inversion embeddings", order="prompt")
def test_embeddings_move_what_follows(world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tiny import encode, make_clip, tokens_marked

    embeddings(tmp_path)
    plain = make_clip(str(tmp_path))
    _, clip = world.apply(world.model, plain)
    marked = tokens_marked(encode(clip, "a embedding:style (embedding:style:1.1) person"))
    assert marked == [8]
    assert rows_that_change(plain, "a embedding:style (embedding:style:1.1) person", "person", "dog") == [8]
    assert tokens_marked(encode(clip, "embedding:person a person")) == [2]  # there is no such file
    assert not [r for r in caplog.records if "text_g" in r.getMessage()]

    # An embedding of the first text model's width: the second drops it, and the word moves up there.
    text = "a embedding:small person"
    assert tokens_marked(encode(clip, text)) == [2, 4]
    assert rows_that_change(plain, text, "person", "dog") == [2]


@pytest.mark.composes(
    "CLIPTextEncodeSDXL", order="prompt", note="with two different texts, the words of both carry subjects"
)
def test_clip_text_encode_sdxl(world: Any) -> None:
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL
    from tiny import carries, encode, sample, tokens_marked

    def both(clip: Any, text_g: str, text_l: str) -> Any:
        return CLIPTextEncodeSDXL.execute(clip, 1024, 1024, 0, 0, 1024, 1024, text_g, text_l)[0]

    model, clip = world.apply(world.model, world.clip)
    negative = encode(clip, "bad")
    person = world.clip.tokenize("person")["g"][0][1][0]
    long = "grey house by the sea, " * 20
    for text_g, text_l in (
        ("a photo of a person", "a photo of a person"),
        ("a person by the sea", "a drawing of a person"),
        ("a person by the sea", ""),
        ("", "the person"),
        ("a person", long),
        (long + "a person", "person"),
    ):
        tokens = {"g": world.clip.tokenize(text_g)["g"], "l": world.clip.tokenize(text_l)["l"]}
        places = {
            at
            for chunks in tokens.values()
            for at, entry in enumerate(entry for chunk in chunks for entry in chunk)
            if entry[0] == person
        }
        ours, plain = both(clip, text_g, text_l), both(world.clip, text_g, text_l)
        assert tokens_marked(ours) == sorted(places), (text_g, text_l)
        assert torch.equal(ours[0][0], plain[0][0])
        assert carries(sample(model, ours, negative), sample(world.model, plain, negative))


def test_different_texts_are_told_once(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    from nested_attention.hosts.comfy.notices import warn_once

    warn_once.cache_clear()
    _, clip = world.apply(world.model, world.clip)
    tokens = clip.tokenize("a person by the sea")
    tokens["l"] = clip.tokenize("a drawing of a person")["l"]
    with caplog.at_level(logging.WARNING, "nested_attention"):
        for _ in range(3):
            clip.encode_from_tokens_scheduled(tokens)
    assert len(caplog.records) == 1
    assert "'person' does not stand at the same place in both" in caplog.text


def test_texts_that_put_two_subjects_on_one_token(world: Any) -> None:
    from tiny import encode, sample

    from nested_attention.errors import NestedAttentionError

    model, clip = world.apply(*world.apply(world.model, world.clip), world.rex)
    tokens = clip.tokenize("a person")
    tokens["l"] = clip.tokenize("a pet")["l"]
    with pytest.raises(NestedAttentionError, match="token 2 would carry two subjects.*text_l.*text_g"):
        sample(model, clip.encode_from_tokens_scheduled(tokens), encode(clip, ""))


def test_nodes_that_rebuild_tokens_or_the_conditioning(world: Any) -> None:
    from comfy_extras.nodes_cond import CLIPTextEncodeControlnet
    from tiny import carries, encode, sample

    model, clip = world.apply(world.model, world.clip)
    negative = encode(clip, "bad")
    plain = sample(world.model, encode(world.clip, "a person"), negative)
    tokens = clip.tokenize("a person", return_word_ids=True)
    stripped = {k: [[(t, w * 1.0) for t, w, _ in chunk] for chunk in v] for k, v in tokens.items()}
    cond, pooled = clip.encode_from_tokens(stripped, return_pooled=True)
    expected = sample(model, encode(clip, "a person"), negative)
    assert carries(expected, plain)
    assert torch.equal(sample(model, [[cond, {"pooled_output": pooled}]], negative), expected)

    # Another prompt's context in a dict that carries a subject does not carry it, and the other way round.
    other, other_pooled = clip.encode_from_tokens(clip.tokenize("a house"), return_pooled=True)
    entries = encode(clip, "a person")[0][1]
    model_warns, _ = world.apply(world.model, world.clip, when_missing="warn")
    replaced = [[other, {**entries, "pooled_output": other_pooled}]]
    assert torch.equal(
        sample(model_warns, replaced, negative),
        sample(world.model, [[other, {"pooled_output": other_pooled}]], negative),
    )

    # CLIPTextEncodeControlnet adds a second prompt, which leaves the first's marks as they are (and makes
    # ComfyUI run the prompts one by one, which rounds otherwise).
    added = CLIPTextEncodeControlnet.execute(clip, encode(clip, "a person"), "a house")[0]
    assert not carries(sample(model, added, negative), expected, threshold=2e-5)


def lora_for(model: Any, clip: Any) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for one layer each of the UNet and a text encoder."""
    import comfy.lora

    generator = torch.Generator().manual_seed(0)
    keys = {**comfy.lora.model_lora_keys_unet(model.model, {})}
    weights = model.model.state_dict()
    lora = {}
    for name in ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",):
        shape = weights[keys[name]].shape
        lora[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, generator=generator)
        lora[f"{name}.lora_down.weight"] = torch.randn(2, shape[1], generator=generator)
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    shape = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1.weight.shape
    lora[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, generator=generator)
    lora[f"{name}.lora_down.weight"] = torch.randn(2, shape[1], generator=generator)
    return lora


@pytest.mark.composes("LoRA loaders", order="both")
def test_lora_loader_before_and_after(world: Any) -> None:
    import comfy.sd
    from tiny import carries, encode, same, sample

    lora = lora_for(world.model, world.clip)
    changed = comfy.sd.load_lora_for_models(world.model, world.clip, lora, 1.0, 1.0)
    before = world.apply(*changed)
    after = comfy.sd.load_lora_for_models(*world.apply(world.model, world.clip), lora, 1.0, 1.0)

    def picture(model: Any, clip: Any) -> torch.Tensor:
        return sample(model, encode(clip, "a person"), encode(clip, "bad"))

    plain = picture(*changed)
    assert carries(plain, picture(world.model, world.clip))
    assert carries(picture(*after), plain)
    assert same(picture(*before), picture(*after))
    assert same(
        picture(world.model, world.clip), picture(*world.apply(world.model, world.clip, strength=0.0))
    )


@pytest.mark.composes("CLIP Set Last Layer (CLIP skip)", order="both")
def test_clip_set_last_layer_before_and_after(world: Any) -> None:
    from nodes import CLIPSetLastLayer
    from tiny import carries, encode, same, sample

    def last(clip: Any) -> Any:
        return CLIPSetLastLayer().set_last_layer(clip, -1)[0]

    negative = encode(world.clip, "bad")
    model, clip = world.apply(world.model, world.clip)
    after = encode(last(clip), "a person")
    before = encode(world.apply(world.model, last(world.clip))[1], "a person")
    assert torch.equal(after[0][0], before[0][0])
    assert not torch.equal(after[0][0], encode(clip, "a person")[0][0])
    assert same(sample(model, after, negative), sample(model, before, negative))
    assert carries(
        sample(model, after, negative), sample(world.model, encode(last(world.clip), "a person"), negative)
    )


@pytest.mark.composes("CLIP hooks and schedules", order="both")
@pytest.mark.parametrize("schedule", [False, True])
def test_clip_hooks(world: Any, schedule: bool) -> None:
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks
    from tiny import carries, encode, same, sample, tokens_marked

    model, clip = world.apply(world.model, world.clip)
    hooks = comfy.hooks.create_hook_lora(lora_for(world.model, world.clip), 0.0, 1.0)
    (hooked,) = SetClipHooks().apply_hooks(clip, schedule, False, hooks)
    positive = encode(hooked, "a person")
    assert tokens_marked(positive) == [2]
    plain = [[context, {"pooled_output": entries["pooled_output"]}] for context, entries in positive]
    negative = encode(world.clip, "bad")
    drawn = sample(model, positive, negative)
    assert carries(drawn, sample(world.model, plain, negative))
    (before,) = SetClipHooks().apply_hooks(world.clip, schedule, False, hooks)
    model, clip = world.apply(world.model, before)
    assert same(sample(model, encode(clip, "a person"), negative), drawn)


def test_another_packs_clip_class_stays_itself(world: Any) -> None:
    import comfy.sd
    from tiny import tokens_marked

    class Shouting(comfy.sd.CLIP):
        def clone(self) -> Any:
            clone = super().clone()
            clone.__class__ = Shouting
            return clone

        def tokenize(self, text: str, *args: Any, **kwargs: Any) -> Any:
            return super().tokenize(f"loud {text}", *args, **kwargs)

    theirs = world.clip.clone()
    theirs.__class__ = Shouting
    _, ours = world.apply(world.model, theirs)
    again = ours.clone()
    assert isinstance(again, Shouting)
    assert tokens_marked(again.encode_from_tokens_scheduled(again.tokenize("a person"))) == [3]
    assert not hasattr(theirs, "subjects")


def test_mark_prompt(world: Any) -> None:
    from tiny import encode, same, sample, tokens_marked

    from nested_attention.hosts.comfy import mark_prompt
    from nested_attention.hosts.comfy.prompts.marks import COND

    model, clip = world.apply(world.model, world.clip, name="alice")
    negative = encode(clip, "bad")
    unmarked = encode(world.clip, "a person by the sea")
    before = dict(unmarked[0][1])
    marked = mark_prompt(unmarked, clip, "a <alice> by the sea")
    assert tokens_marked(marked) == [2]
    expected = sample(model, encode(clip, "a <alice> by the sea"), negative)
    assert same(sample(model, marked, negative), expected)
    assert unmarked[0][1] == before
    assert not hasattr(unmarked[0][0], "nested_attention")

    # It replaces what the conditioning has: here the marks of another text.
    other = encode(clip, "<alice> at home")
    assert tokens_marked(mark_prompt(other, clip, "at <alice>")) == [2]
    assert tokens_marked(other) == [1]
    longer = [[torch.cat([unmarked[0][0]] * 2, dim=1), unmarked[0][1]]]
    assert mark_prompt(longer, clip, "a person")[0][1]["model_conds"][COND].cond.shape == (1, 154, 1)


def test_mark_prompt_refuses(world: Any) -> None:
    from tiny import encode

    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy import mark_prompt

    _, clip = world.apply(world.model, world.clip)
    conditioning = encode(world.clip, "a person")
    with pytest.raises(NestedAttentionError, match="Mark Prompt: the CLIP carries no subject.*Apply Subject"):
        mark_prompt(conditioning, world.clip, "a person")
    with pytest.raises(
        NestedAttentionError, match="Mark Prompt: the text carries no subject: it has the words a, dog"
    ):
        mark_prompt(conditioning, clip, "a dog")
    with pytest.raises(
        NestedAttentionError, match="Mark Prompt: the text takes 154 tokens and a subject is past the 77"
    ):
        mark_prompt(conditioning, clip, "grey house by the sea, " * 13 + "a person")
    _, two = world.apply(world.model, clip, world.bob, name="bob")
    with pytest.raises(NestedAttentionError, match="Mark Prompt: the word 'person'.*<person> and <bob>"):
        mark_prompt(conditioning, two, "a person")
