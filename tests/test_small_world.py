"""The shipped weights: within their budget, deterministic, and keeping subjects."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from random_world import random_judges

from nested_attention.avatars.drawing.references import held_out
from nested_attention.avatars.figures.cases import draw_cases
from nested_attention.avatars.figures.judges import (
    SCORERS,
    SUBJECTS,
    Counts,
    Judges,
    attach,
    generate,
    score_identity,
    score_prompt,
)
from nested_attention.avatars.models.vocabulary import SIZE, CompactEmbedding, compact
from nested_attention.avatars.models.world import Attached, Sampling
from nested_attention.paths import SMALL_WORLD, WEIGHTS
from nested_attention.settings import SubjectSettings

MEGABYTE = 1_000_000
SHORT = Sampling(steps=4, batch=4)


@pytest.fixture(scope="module")
def judges() -> Judges:
    """Of random weights: what holds for any."""
    return random_judges()


def test_weights_stay_small() -> None:
    files = list(SMALL_WORLD.rglob("*.safetensors"))
    assert files and max(path.stat().st_size for path in files) <= 16 * MEGABYTE
    assert sum(path.stat().st_size for path in files) <= 36 * MEGABYTE


def test_the_tracked_tree_stays_small() -> None:
    root = Path(__file__).resolve().parents[1]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [root / name for name in listed.stdout.decode().split("\0") if name]
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    assert sum(sizes.values()) <= 56 * MEGABYTE
    assert sum(size for path, size in sizes.items() if WEIGHTS in path.parents) <= 48 * 2**20


def test_a_compact_embedding_is_the_full_one() -> None:
    torch.manual_seed(0)
    full = torch.nn.Embedding(SIZE, 4)
    small = CompactEmbedding([0, 7, 49407], full.weight.detach()[[0, 7, 49407]])
    ids = torch.tensor([[49407, 0, 7]])
    assert torch.equal(small(ids), full(ids))
    assert torch.equal(small(torch.tensor([5])), torch.zeros(1, 4))
    assert torch.equal(small.full()[7], full.weight[7]) and small.full().shape == (SIZE, 4)
    with pytest.raises(ValueError, match="3 token ids for 2 embedding rows"):
        CompactEmbedding([1, 2, 3], torch.zeros(2, 4))


def test_compacting_twice_changes_nothing(judges: Judges) -> None:
    before = judges.world.text_encoder_2.text_model.embeddings.token_embedding
    compact(judges.world.text_encoder_2, [0, 1])
    assert judges.world.text_encoder_2.text_model.embeddings.token_embedding is before


def test_drawing_is_deterministic_and_does_not_depend_on_the_batch(judges: Judges) -> None:
    prompts, seeds = ["a photo of a person on the left at the beach"] * 3, [1, 2, 3]
    together = judges.world.generate(prompts, seeds, [], SHORT)
    again = judges.world.generate(prompts, seeds, [], SHORT)
    alone = judges.world.generate(prompts[1:2], seeds[1:2], [], SHORT)
    assert np.array_equal(together, again)
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 2
    assert not np.array_equal(together[0], together[1])


def test_strength_zero_is_the_base_model(judges: Judges) -> None:
    cases = draw_cases(("pet",), 2, seed=5)
    attached = attach(judges, cases, "pet")
    off = Attached(attached.encoder, attached.tokens, "pet", SubjectSettings(strength=0.0))
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    assert np.array_equal(
        judges.world.generate(prompts, seeds, [off], SHORT), judges.world.generate(prompts, seeds, [], SHORT)
    )


def test_a_prompt_without_the_word_is_refused(judges: Judges) -> None:
    cases = draw_cases(("pet",), 1, seed=5)
    with pytest.raises(ValueError, match="'pet'"):
        judges.world.generate(["a photo of the beach"], [0], [attach(judges, cases, "pet")], SHORT)


def test_subjects_of_one_seed_are_always_the_same() -> None:
    assert held_out("person", 3) == held_out("person", 3) != held_out("person", 4)


@pytest.mark.slow
@pytest.mark.parametrize("word", SUBJECTS)
def test_subjects_are_kept_and_prompts_followed(word: str) -> None:
    """A reduced count of `make acceptance`, on the development set: the subject gets through, and does not
    overwhelm the prompt."""
    judges, cases = Judges.load(), draw_cases((word,), 24, seed=9)
    rgb, base = generate(judges, cases, [attach(judges, cases, word)]), generate(judges, cases)
    counts = Counts(subjects=24, twins=2)
    kept, floor = (score_identity(judges, drawn, cases, word, counts) for drawn in (rgb, base))
    for scorer in SCORERS:
        assert kept[scorer]["top1"]["rate"] >= floor[scorer]["top1"]["rate"] + 0.5
    followed, alone = (score_prompt(judges, drawn, cases) for drawn in (rgb, base))
    assert followed["all"]["rate"] >= 0.9 * alone["all"]["rate"]
    assert followed["balanced"]["rate"] >= 0.7 * alone["balanced"]["rate"]
