"""A subject: the tokens an encoder made of one or several pictures, and how much each of them weighs.

Several pictures of one subject, or of different people to be mixed, are concatenated (paper, Sec. 5.3 and
appendix, "Identities Mixing"). Weights are log-weights on the tokens, added to the logits of the nested
attention: a token of weight w counts as w tokens of weight 1 would.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from . import __version__
from .errors import NestedAttentionError
from .storage.tensors import open_tensors, write_tensors
from .storage.thumbnail import check_thumbnail

if TYPE_CHECKING:
    from .encoder import SubjectEncoder, SubjectEncoderConfig

FORMAT, FORMAT_VERSION = "nested_attention.subject", "1"
_PROVENANCE = {"format", "format_version", "word", "fingerprint", "images", "library_version"}
_HEADER_BYTES = 2**20  # a subject's header has a few hundred; a checkpoint's is to be told by its tensors
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Fingerprinted(Protocol):
    """A SubjectEncoder, or what a host wraps around one."""

    @property
    def config(self) -> SubjectEncoderConfig: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture that a subject is made of, for as long as the subject is in memory. It is never saved.

    picture: (h, w, 3) uint8 on the CPU, as the vision model sees it. looks: () → (queries, rows, columns),
    where in the picture each of the encoder's learned queries looked; each map sums to 1. None for an encoder
    that reads the picture as a whole.
    """

    picture: Tensor
    looks: Callable[[], Tensor] | None


@dataclass(frozen=True, eq=False)
class Subject:
    """Immutable; its tensors must not be written to.

    tokens: (N, token_dim), the tokens of all images. token_bias: (N,), log-weights, 0 for the heaviest.
    word: the word its encoder was trained on. fingerprint: of its encoder. images: how many pictures it is
    made of. references: of which picture each block of as many tokens is, None for one that is not known;
    empty if none is.
    """

    tokens: Tensor
    token_bias: Tensor
    word: str
    fingerprint: str
    images: int = 1
    references: tuple[Reference | None, ...] = ()

    def __post_init__(self) -> None:
        tokens, bias = self.tokens, self.token_bias
        if tokens.dim() != 2 or 0 in tokens.shape or tokens.dtype not in _DTYPES:
            raise NestedAttentionError(
                f"subject: tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}; expected "
                "floating-point (tokens, token_dim)"
            )
        if bias.shape != tokens.shape[:1] or bias.dtype not in _DTYPES:
            raise NestedAttentionError(
                f"subject: token_bias has shape {tuple(bias.shape)} and dtype {bias.dtype}; expected "
                f"floating-point ({tokens.shape[0]},), one entry a token"
            )
        if not bool(torch.isfinite(tokens).all()):
            raise NestedAttentionError("subject: its tokens contain NaN or infinite values; encode it again")
        if not bool((bias < math.inf).all()) or not bool(torch.isfinite(bias).any()):  # NaN < inf is false
            raise NestedAttentionError(
                "subject: token_bias must be finite or -inf, with at least one finite entry"
            )
        if not isinstance(self.word, str) or not self.word.strip():
            raise NestedAttentionError(f"subject: word is {self.word!r}; expected a word such as 'person'")
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise NestedAttentionError(
                f"subject: fingerprint is {self.fingerprint!r}; expected its encoder's"
            )
        if not isinstance(self.images, int) or isinstance(self.images, bool) or self.images < 1:
            raise NestedAttentionError(f"subject: number of images is {self.images!r}; expected at least 1")
        if self.references and len(tokens) % len(self.references):
            raise NestedAttentionError(
                f"subject: {len(self.references)} references for {len(tokens)} tokens; expected one for each "
                "block of as many tokens"
            )

    @classmethod
    def from_images(
        cls,
        encoder: SubjectEncoder,
        features: Tensor,
        weights: Sequence[float] | Tensor | None = None,
        *,
        average: bool = False,
    ) -> Subject:
        """A subject from the features (n_images, patches, vision_dim) of one or several pictures.

        weights: one number ≥ 0 a picture, only their ratios matter; equal weights (the default) leave
        token_bias zero, a picture of weight 0 is left out altogether. Pictures are encoded one at a time, so
        that a picture's tokens do not depend, to the last bit, on which others come with it.

        average: encode the mean of the pictures' features, by the weights, in place of each, as IPAdapter's
        "average" does: as many tokens as of one picture.

        Raises NestedAttentionError for features the encoder refuses and for weights that do not fit them.
        """
        encoder.check_features(features)
        count = features.shape[0]
        shares = [1.0] * count if weights is None else [float(weight) for weight in weights]
        if len(shares) != count:
            raise NestedAttentionError(
                f"{len(shares)} weights for {count} images; expected one weight an image"
            )
        if not all(0 <= share < math.inf for share in shares) or not any(shares):
            raise NestedAttentionError(
                f"image weights are {shares}; expected numbers ≥ 0, at least one above 0"
            )
        if average:
            by = features.new_tensor(shares, dtype=torch.float32)[:, None, None] / sum(shares)
            mean = (features.float() * by).sum(dim=0, keepdim=True).to(features.dtype)
            return replace(cls.from_images(encoder, mean), images=sum(share > 0 for share in shares))
        heaviest = math.log(max(shares))
        tokens, biases = [], []
        with torch.no_grad():
            for image, share in zip(features, shares, strict=True):
                if share > 0:
                    tokens.append(encoder(image[None])[0])  # (num_queries, token_dim)
                    biases.append(torch.full((len(tokens[-1]),), math.log(share) - heaviest))
        joined = torch.cat(tokens)  # (N, token_dim)
        bias = torch.cat(biases).to(joined.device)  # (N,), fp32
        return cls(joined, bias, encoder.config.word, encoder.fingerprint, len(tokens))

    def mix(self, other: Subject, weight: float) -> Subject:
        """This subject with weight 1 − w and another one with weight w, w ∈ [0, 1].

        The weights are weights of pictures, as in `from_images`: w = 0.5 changes nothing, whatever the sizes,
        and is exactly the concatenation of the tokens (the paper's mixing, App. B), so a person of three
        pictures meets one of a single picture at 3 : 1. Within a side, ratios are kept. At w = 0 or 1 the
        side of weight 0 is dropped, and what is left is returned as it was.

        Raises NestedAttentionError for a weight outside [0, 1] and for subjects of different encoders.
        """
        if not 0 <= weight <= 1:
            raise NestedAttentionError(f"mixing weight is {weight!r}; expected a number from 0 to 1")
        if not isinstance(other, Subject):  # a batch of subjects, each of which is mixed
            return other.mix(self, 1 - weight)
        if self.fingerprint != other.fingerprint or self.tokens.shape[1] != other.tokens.shape[1]:
            raise NestedAttentionError(
                "the two subjects come from different encoders, whose tokens mean different things; encode "
                f"both pictures with the same encoder (fingerprints {self.fingerprint} and "
                f"{other.fingerprint})"
            )
        if weight == 0:
            return self
        if weight == 1:
            return other
        heavier = max(weight, 1 - weight)  # its log-weights stay as they are
        joined = torch.cat(
            [
                bias.to(self.tokens.device, torch.float32) + math.log(share / heavier)
                for bias, share in ((self.token_bias, 1 - weight), (other.token_bias, weight))
            ]
        )  # (N,)
        tokens = torch.cat((self.tokens, other.tokens.to(self.tokens)))  # (N, token_dim)
        images = self.images + other.images
        return Subject(tokens, joined, self.word, self.fingerprint, images, self._references_with(other))

    def _references_with(self, other: Subject) -> tuple[Reference | None, ...]:
        known = self if self.references else other
        if not known.references:
            return ()
        block = len(known.tokens) // len(known.references)
        return tuple(
            reference
            for one in (self, other)
            for reference in one.references or (None,) * (len(one.tokens) // block)
        )

    def check_encoder(self, encoder: Fingerprinted) -> None:
        """Raises NestedAttentionError unless `encoder` is the one this subject was made with."""
        if self.fingerprint != encoder.fingerprint:
            raise NestedAttentionError(
                f"this subject ('{self.word}', {self.images} image(s)) was made with another encoder than "
                f"this one, for '{encoder.config.word}', whose tokens mean something else; load the encoder "
                "it was made with, or encode its pictures again with this one (fingerprints: subject "
                f"{self.fingerprint}, encoder {encoder.fingerprint})"
            )

    def save(self, path: str | os.PathLike[str], *, thumbnail: Tensor | None = None) -> None:
        """Write tokens, weights and provenance as safetensors: no picture and no file name is kept.

        thumbnail: a small picture to keep along, from `make_thumbnail`, only if it is asked for. The file is
        replaced in one step. Raises NestedAttentionError if it cannot be written.
        """
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "word": self.word,
            "fingerprint": self.fingerprint,
            "images": str(self.images),
            "library_version": __version__,
        }
        tensors = {"tokens": self.tokens, "token_bias": self.token_bias}
        if thumbnail is not None:
            check_thumbnail(thumbnail)
            tensors["thumbnail"] = thumbnail
        write_tensors(path, tensors, {**metadata, "digest": _digest(tensors, metadata)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Subject:
        """Read what `save` wrote. Raises NestedAttentionError for anything else, damaged content included."""
        return read_subject(path)[0]


def read_subject(path: str | os.PathLike[str]) -> tuple[Subject, Tensor | None]:
    """A saved subject and its thumbnail, (height, width, 3) uint8, or None if it was saved without one.

    Raises NestedAttentionError for anything that `Subject.save` has not written, damaged content included.
    """
    with open_tensors(path, safetensors_only=True, header_bytes=_HEADER_BYTES) as file:
        metadata = dict(file.metadata)
        digest = metadata.pop("digest", None)
        _check_complete(path, metadata, set(file.specs))  # before gigabytes of something else are read
        tensors = {name: file.read(name) for name in file.specs}
    if digest != _digest(tensors, metadata) or not re.fullmatch("[1-9][0-9]{0,8}", metadata["images"]):
        raise NestedAttentionError(f"{path} is damaged: its content is not what was saved; save it again")
    thumbnail = tensors.get("thumbnail")
    try:
        if thumbnail is not None:
            check_thumbnail(thumbnail)
        subject = Subject(
            tokens=tensors["tokens"],
            token_bias=tensors["token_bias"],
            word=metadata["word"],
            fingerprint=metadata["fingerprint"],
            images=int(metadata["images"]),
        )
    except NestedAttentionError as error:
        raise NestedAttentionError(f"{path}: {error}") from error
    return subject, thumbnail


def _check_complete(path: str | os.PathLike[str], metadata: Mapping[str, str], names: set[str]) -> None:
    """Raises NestedAttentionError unless a file says that it is a saved subject, and has all that one has."""
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", f"tensors {sorted(names)[:3]}")
        raise NestedAttentionError(f"{path} is not a saved subject: found {found}, expected format {FORMAT}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise NestedAttentionError(
            f"{path} is a subject in format version {metadata.get('format_version')}; this library reads "
            f"version {FORMAT_VERSION}. Update Nested Attention"
        )
    if set(metadata) != _PROVENANCE or names - {"thumbnail"} != {"tokens", "token_bias"}:
        raise NestedAttentionError(
            f"{path} is not a complete subject: found tensors {sorted(names)} and metadata "
            f"{sorted(metadata)}, expected ['token_bias', 'tokens'] and {sorted(_PROVENANCE)}; save it again"
        )


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """A checksum of everything in a subject's file: it tells damage, not forgery."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
