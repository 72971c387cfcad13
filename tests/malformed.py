"""Malformed inputs of every kind the library reads, made from good ones with a seed.

A kind is a function: it makes a good input when it is set up, and then, given a random generator, spoils it
and gives it to the library. It returns normally if what came out is correct, and raises the library's own
error if the input was refused; anything else is a defect.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import random
import string
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from synthetic_checkpoints import TINY_SITES, encoder_tensors, write

from nested_attention.attention import BoundSubject, check_subjects, nested_cross_attention
from nested_attention.blocks import parse_blocks
from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.placeholders import SubjectWord, parse_prompt
from nested_attention.prompt import find_word
from nested_attention.storage.download import check_header
from nested_attention.storage.registry import REGISTRY, find_weights, known_weights
from nested_attention.storage.store import find_subject, is_subject, list_subjects, save_subject
from nested_attention.storage.tensors import read_tensors
from nested_attention.storage.thumbnail import make_thumbnail
from nested_attention.subject import Subject, read_subject

Case = Callable[[random.Random], None]

CONFIG = SubjectEncoderConfig(
    vision_dim=12, token_dim=20, num_queries=4, width=16, depth=1, heads=2, head_dim=8, sites=TINY_SITES[:2]
)
NASTY = [
    "", " ", "\0", "\n", "..", "/", "\\", "~", "%year%", "CON", "ä", "木", "\u202e", "\ud800", "a" * 300,
    "-1", "1e999", "nan", "null", "true", "{}", "[]", "<", ">", ":", "<<>>", "((", "))", "<alice", "<alice>",
    "<alcie>", "<alice:>", "<alice:1.2>", "<alice:a:b>", "embedding:x", "<lora:x:1>", "$(id)", "`id`", "';--",
    "{{7*7}}", "__import__('os')", "\x1b[2J",
]  # fmt: skip
CHARACTERS = string.ascii_letters + string.digits + "<>:()[]{}.,;/\\ \t\n'\"-_%\0äß木😀\u200d\u0301"


def spoil(content: bytes, rng: random.Random, header: int = 0) -> bytes:
    """One to four bytes or runs changed, put in, taken out, doubled or cut off; half of the time in the first
    `header` bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        end = header if header and rng.random() < 0.5 else len(data)
        at = rng.randrange(max(1, min(end, len(data))))
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[at : at + 1] = rng.choice(b'0123456789"{}[],:._-').to_bytes(1, "little")
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 3:
            del data[at : at + rng.randint(1, 9)]
        elif kind == 4:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        else:
            del data[max(1, at) :]
    return bytes(data)


def anything(rng: random.Random, depth: int = 0) -> object:
    """Some value that JSON can hold."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return rng.choice([0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**30, -(2**63)])
    if kind == 2:
        return rng.choice([0.0, -1.5, 1e308, 0.1])
    if kind == 3:
        return rng.choice([None, True, False])
    if kind < 6:
        return rng.choice(NASTY[:20]).replace("\ud800", "")
    inner = [anything(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return inner if kind == 6 else {rng.choice(NASTY[:19]): value for value in inner}


def text(rng: random.Random, longest: int = 30) -> str:
    pieces = [rng.choice(NASTY) if rng.random() < 0.3 else rng.choice(CHARACTERS) for _ in range(longest)]
    words = ["alice", "person", "<alice>", "a", "of", "Person", "alice's"]
    return "".join(rng.choice(words) + " " if rng.random() < 0.3 else p for p in pieces[: rng.randint(0, 30)])


def respell(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a valid header that says something else."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    for _ in range(rng.randint(1, 3)):
        where: dict[str, object] = header
        key = rng.choice([*header, rng.choice(NASTY[:19])])
        while isinstance(where.get(key), dict) and where[key] and rng.random() < 0.8:
            where = where[key]  # type: ignore[assignment]
            key = rng.choice(list(where))
        if rng.random() < 0.2:
            where.pop(key, None)
        elif isinstance(where.get(key), list) and where[key] and rng.random() < 0.7:
            numbers = list(where[key])  # type: ignore[call-overload]
            numbers[rng.randrange(len(numbers)) : rng.randrange(9)] = [rng.choice([0, 1, 3, 2**40, 2**63])]
            where[key] = numbers
        else:
            where[key] = anything(rng)
    spelled = json.dumps(header).encode()
    return struct.pack("<Q", len(spelled)) + spelled + content[8 + length :]


def same(one: Subject, other: Subject) -> bool:
    fields = ("word", "fingerprint", "images")
    tensors = ((one.tokens, other.tokens), (one.token_bias, other.token_bias))
    return all(getattr(one, f) == getattr(other, f) for f in fields) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in tensors
    )


UNUSABLE = [torch.nan, torch.inf, -torch.inf]


def not_finite(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A copy with one to three values that are no numbers, or infinite."""
    spoilt = tensor.clone()
    for _ in range(rng.randint(1, 3)):
        spoilt.view(-1)[rng.randrange(spoilt.numel())] = rng.choice(UNUSABLE)
    return spoilt


def values_in_subject_files(folder: Path) -> Case:
    """Files as `save` writes them, checksum included, of subjects that cannot be."""
    torch.manual_seed(4)
    original = Subject(torch.randn(4, 8), torch.zeros(4), "person", "f")
    path = folder / "case.safetensors"

    def case(rng: random.Random) -> None:
        spoilt = copy.copy(original)
        which = rng.choice(["tokens", "tokens", "token_bias", "nothing"])
        if which != "nothing":
            object.__setattr__(spoilt, which, not_finite(getattr(original, which), rng))
        spoilt.save(path)
        loaded = read_subject(path)[0]
        assert loaded.tokens.isfinite().all()
        # A token of weight 0 is one that has been removed.
        assert (loaded.token_bias < torch.inf).all() and loaded.token_bias.isfinite().any()

    return case


def values_in_encoder_files(folder: Path) -> Case:
    """Our own layout, checksum included, and a foreign one, with weights that are no numbers."""
    torch.manual_seed(0)
    ours, foreign = SubjectEncoder(CONFIG).eval(), encoder_tensors()
    state = ours.state_dict()

    def case(rng: random.Random) -> None:
        path = folder / f"case.{rng.choice(['bin', 'safetensors'])}"
        usable = rng.random() < 0.2
        if rng.random() < 0.5:
            name = rng.choice(sorted(state))
            encoder = SubjectEncoder(CONFIG).eval()
            encoder.load_state_dict(state if usable else {**state, name: not_finite(state[name], rng)})
            save_subject_encoder(encoder, path)
            loaded = load_subject_encoder(path)
        else:
            name = rng.choice(sorted(foreign))
            write(path, foreign if usable else {**foreign, name: not_finite(foreign[name], rng)})
            loaded = load_subject_encoder(path, sites=TINY_SITES)
        assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())

    return case


def long_inputs(folder: Path) -> Case:
    """Up to a hundred thousand characters wherever a text or a name is read: answered at once."""
    torch.manual_seed(4)
    subject = Subject(torch.randn(4, 8), torch.zeros(4), "p", "f")
    stores = {"output": folder.parent / "output"}
    subjects = [SubjectWord("alice", "person"), SubjectWord("bob", "pet")]
    heads = ["", "<", "<alice:", "a person, <alice>", "alice", "(", "\\", "0", "-", "[", '{"a":', "up:"]
    runs = ["1", "1.", "<", ":", "a ", "<alice> ", "person ", "(", "a/", "../", " ", "木", "[", "up:1,"]
    tails = ["", "x>", ">", ":1.0>", ")", " person", "\n", "]", "}"]

    def case(rng: random.Random) -> None:
        run = rng.choice(runs)
        long = rng.choice(heads) + run * (10 ** rng.randint(3, 5) // len(run)) + rng.choice(tails)
        read: list[Callable[[str], object]] = [
            lambda name: find_subject(name, stores),
            lambda name: save_subject(subject, name, stores["output"]),
            lambda text: parse_blocks(text, [site.name for site in TINY_SITES]),
            SubjectEncoderConfig.from_json,
            find_weights,
            read_tensors,
            lambda text: parse_prompt(text, subjects),
            lambda text: find_word(tokenize, text, "person"),
            lambda text: find_word(tokenize, "a person", text),
        ]
        start = time.process_time()
        try:
            rng.choice([*read, *read[-3:]])(long)  # prompts are what people write
        except NestedAttentionError as error:
            assert len(str(error)) < 2000, f"a message of {len(str(error))} characters"
            raise
        finally:
            assert time.process_time() - start < 2, f"{long[:20]} … {len(long)} characters"

    return case


def subject_files(folder: Path, header_only: bool) -> Case:
    torch.manual_seed(4)
    original = Subject(torch.randn(4, 8), torch.zeros(4), "person", "0123456789abcdef" * 2, 2)
    path = folder / "case.safetensors"
    original.save(path, thumbnail=make_thumbnail(torch.rand(9, 7, 3)))
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]

    def case(rng: random.Random) -> None:
        path.write_bytes(respell(content, rng) if header_only else spoil(content, rng, header))
        is_subject(path)  # never an error: it is what a list is made with
        subject, _ = read_subject(path)
        # The library's version is free text under the checksum; everything else is what was saved.
        assert same(subject, original)

    return case


def our_encoder_files(folder: Path, header_only: bool) -> Case:
    torch.manual_seed(0)
    original = SubjectEncoder(CONFIG).eval()
    path = folder / "case.safetensors"
    save_subject_encoder(original, path)
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]

    def case(rng: random.Random) -> None:
        path.write_bytes(respell(content, rng) if header_only else spoil(content, rng, header))
        loaded = load_subject_encoder(path)
        state = loaded.state_dict()
        # An encoder is told by its weights in fp16: a bit below that precision changes nothing it says.
        assert all(torch.equal(state[name].half(), t.half()) for name, t in original.state_dict().items())
        assert loaded(torch.zeros(1, 3, loaded.config.vision_dim)).isfinite().all()

    return case


def foreign_encoder_files(folder: Path, suffix: str, respelled: bool) -> Case:
    path = write(folder / f"case{suffix}", encoder_tensors())
    content = path.read_bytes()
    header = 0 if suffix == ".bin" else 8 + struct.unpack("<Q", content[:8])[0]

    def case(rng: random.Random) -> None:
        path.write_bytes(respell(content, rng) if respelled else spoil(content, rng, header))
        check_quietly(path)
        loaded = load_subject_encoder(path, sites=TINY_SITES)
        assert loaded(torch.zeros(1, 3, loaded.config.vision_dim)).shape[-1] == loaded.config.token_dim

    return case


def check_quietly(path: Path) -> None:
    with contextlib.suppress(NestedAttentionError):
        check_header(path)


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.target,)


def code_in_files(folder: Path) -> Case:
    """Pickles that would run something, plain, inside PyTorch's zip, and spoilt; under any file name."""
    base = write(folder / "base.bin", encoder_tensors())
    with zipfile.ZipFile(base) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    base.unlink()

    def case(rng: random.Random) -> None:
        bomb = pickle.dumps({"x": Bomb(str(folder / "executed"))}, protocol=rng.randint(0, 5))
        path = folder / rng.choice(["case.bin", "case.safetensors", "case.pt"])
        if rng.random() < 0.5:
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, bomb if name.endswith("data.pkl") else data)
        else:
            path.write_bytes(bomb)
        if rng.random() < 0.5:
            path.write_bytes(spoil(path.read_bytes(), rng))
        try:
            for load in (load_subject_encoder, read_subject):
                try:
                    load(path)
                except NestedAttentionError:
                    continue
                raise AssertionError(f"{path} was read")
            raise NestedAttentionError("refused by both")
        finally:
            assert not (folder / "executed").exists()
            path.unlink()

    return case


def configurations(folder: Path) -> Case:
    values = json.loads(CONFIG.to_json())

    def case(rng: random.Random) -> None:
        changed = json.loads(json.dumps(values))
        for _ in range(rng.randint(1, 3)):
            target = (
                rng.choice([changed, *changed["sites"]]) if isinstance(changed["sites"], list) else changed
            )
            if not isinstance(target, dict):
                continue
            target[rng.choice([*target, "other"])] = anything(rng)
        spelled = json.dumps(changed)
        if rng.random() < 0.3:
            spelled = spoil(spelled.encode(), rng).decode(errors="replace")
        config = SubjectEncoderConfig.from_json(spelled)
        assert SubjectEncoderConfig.from_json(config.to_json()) == config

    return case


def tokenize(prompt: str) -> list[int]:
    """One token a word, 77 a chunk, as CLIP's would."""
    ids = [sum(map(ord, word)) % 9000 + 1 for word in prompt.split()]
    chunks = [ids[at : at + 75] for at in range(0, len(ids), 75)] or [[]]
    return [i for chunk in chunks for i in (49406, *chunk, *[49407] * (76 - len(chunk)))]


def prompts(folder: Path) -> Case:
    subjects = [SubjectWord("alice", "person"), SubjectWord("person 2", "pet"), SubjectWord("木", "child")]

    def case(rng: random.Random) -> None:
        prompt = text(rng) * rng.choice([1, 1, 1, 20])
        refused = 0
        try:
            parsed = parse_prompt(prompt, subjects[: rng.randint(0, 3)])
            if "<" not in prompt:
                assert parsed.text == prompt
            ends = [(o.start, o.end) for o in parsed.occurrences]
            assert all(0 <= start < end <= len(parsed.text) for start, end in ends)
            assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False))
        except NestedAttentionError:
            refused += 1
        try:
            positions = find_word(tokenize, prompt, rng.choice(["person", text(rng, 3), ""]))
            assert positions == sorted(set(positions))
        except NestedAttentionError:
            refused += 1
        if refused:
            raise NestedAttentionError("refused")

    return case


def names(folder: Path) -> Case:
    """Names of subjects to find and to save, out of the folder by .., by links to files and to folders."""
    stores = {label: folder.parent / label for label in ("input", "output")}
    outside = folder.parent / "elsewhere"
    torch.manual_seed(4)
    subject = Subject(torch.randn(4, 8), torch.zeros(4), "p", "f")
    subject.save(outside / "bob.safetensors")
    subject.save(stores["output"] / "alice.safetensors")
    (stores["output"] / "out").symlink_to(outside, target_is_directory=True)
    (stores["output"] / "file.safetensors").symlink_to(outside / "bob.safetensors")
    (stores["output"] / "loop").symlink_to(stores["output"] / "loop")
    if hasattr(os, "mkfifo"):
        os.mkfifo(stores["output"] / "pipe.safetensors")
    kept = ["alice.safetensors [output]"]
    parts = ["..", ".", "", "a", "alice.safetensors", "out", "loop", "new", "/", "C:", *NASTY]
    out = [
        "out/bob.safetensors",
        "file.safetensors",
        "out/new",
        "loop",
        "pipe.safetensors",
        "../elsewhere/bob",
    ]

    def case(rng: random.Random) -> None:
        name = rng.choice("/\\").join(rng.choice(parts) for _ in range(rng.randint(1, 5)))
        name = rng.choice([name, text(rng, 6), f"/{name}", "alice.safetensors", rng.choice(out)])
        if rng.random() < 0.05:
            name *= 10 ** rng.randint(1, 5)
        refused = 0
        for call in (
            lambda: find_subject(name + rng.choice(["", " [output]", " [input]"]), stores),
            lambda: save_subject(subject, name, stores["output"]),
        ):
            try:
                path = call()
                assert any(path.is_relative_to(root) for root in stores.values()), path
                assert not path.is_symlink() and path.resolve() == path
                assert is_subject(path)
                if path.name != "alice.safetensors":
                    path.unlink()
            except NestedAttentionError as error:
                assert len(str(error)) < 2000
                refused += 1
        assert list_subjects(stores) == kept
        assert [path.name for path in outside.iterdir()] == ["bob.safetensors"]
        if refused:
            raise NestedAttentionError("refused")

    return case


def masks(folder: Path) -> Case:
    """Masks, words and weights of bound subjects: checked where they are bound, then used."""
    batch, tokens, heads, size, length = 2, 7, 2, 4, 5

    def case(rng: random.Random) -> None:
        generator = torch.Generator().manual_seed(rng.randrange(2**31))

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        def mask() -> torch.Tensor:
            shape = rng.choice(
                [(batch, tokens)] * 6 + [(1, tokens), (batch, tokens + 1), (tokens,), (0, tokens)]
            )
            return torch.rand(shape, generator=generator) < rng.choice([0.0, 0.1, 0.5, 1.0])

        count = rng.randint(1, 9)
        bias = draw(rng.choice([1, batch]), count)
        for _ in range(rng.randint(0, 4)):
            spot = rng.randrange(len(bias)), rng.randrange(count)
            bias[spot] = rng.choice([-torch.inf, -torch.inf, 0.0, torch.inf, torch.nan, -1e38])
        try:
            subjects = [
                BoundSubject(
                    key=draw(1, count, heads * size),
                    value=draw(1, count, heads * size),
                    mask=mask(),
                    word=rng.choice([None, None, mask()]),
                    strength=rng.choice([0.0, 0.5, 1.0, 1.0, -0.1, 1.1, float("nan")]),
                    alpha=rng.choice([None, 2.0, 0.5]),
                    attention_scale=rng.choice([0.5, 1.0, 3.0]),
                    token_bias=rng.choice([None, bias]),
                )
                for _ in range(rng.randint(1, 2))
            ]
            check_subjects(subjects, batch, tokens)
        except ValueError as error:
            # The mechanism's file knows no other module of ours; its errors say which subject it is.
            assert "ubject" in str(error) and str(error).endswith("."), error
            raise NestedAttentionError(str(error)) from error
        q, k, v = draw(batch, length, heads * size), *(draw(batch, tokens, heads * size) for _ in "kv")
        out = nested_cross_attention(q, k, v, subjects, heads=heads)
        plain = nested_cross_attention(q, k, v, [], heads=heads)
        carried = torch.stack([s.mask.any(dim=1) & (s.strength > 0) for s in subjects]).any(dim=0)
        assert out.isfinite().all()
        assert torch.equal(out[~carried], plain[~carried])

    return case


def lists_of_weights(folder: Path) -> Case:
    content = REGISTRY.read_bytes()
    path = folder / "case.json"

    def case(rng: random.Random) -> None:
        path.write_bytes(spoil(content, rng))
        assert all(one.name == name for name, one in known_weights(path).items())

    return case


KINDS: dict[str, tuple[int, Callable[[Path], Case]]] = {
    "subject file, bytes": (15, lambda f: subject_files(f, False)),
    "subject file, header": (12, lambda f: subject_files(f, True)),
    "subject file, values": (3, values_in_subject_files),
    "encoder file, bytes": (8, lambda f: our_encoder_files(f, False)),
    "encoder file, header": (8, lambda f: our_encoder_files(f, True)),
    "encoder file, values": (2, values_in_encoder_files),
    "foreign encoder file, bytes": (6, lambda f: foreign_encoder_files(f, ".safetensors", False)),
    "foreign encoder file, header": (6, lambda f: foreign_encoder_files(f, ".safetensors", True)),
    "PyTorch file, bytes": (6, lambda f: foreign_encoder_files(f, ".bin", False)),
    "code in a file": (4, code_in_files),
    "configuration": (6, configurations),
    "prompt": (8, prompts),
    "name": (6, names),
    "mask": (6, masks),
    "long input": (2, long_inputs),
    "list of known weights": (2, lists_of_weights),
}
"""Kind → its share in percent, and how it is set up in a folder of its own."""
