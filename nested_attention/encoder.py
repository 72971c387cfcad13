"""The subject encoder: image features → subject tokens → keys and values for every cross-attention layer.

The features come from a frozen CLIP vision model, the tokens from the Q-Former, and one pair of linear layers
a site turns the tokens into the nested keys and values K̆, V̆ of the paper's Eq. 2. IP-Adapter's plain form
reads one pooled embedding a picture in place of features, and has a linear layer in place of the Q-Former.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .attention import Norm
from .errors import NestedAttentionError
from .qformer import QFormer
from .sites import Site, check_size, sdxl_sites

FeatureLayer = Literal["last_hidden_state", "penultimate_hidden_states", "image_embeds"]
"""Which output of the vision model is read: a layer, class token included and without the final norm, or
"image_embeds", the projected embedding that is pooled of a whole picture."""

TrainedInjection = Literal["nested", "decoupled"]
"""How an encoder was trained to reach the picture: as the word's value, or added to the text's attention."""

_SIZES = ("vision_dim", "token_dim", "num_queries", "width", "depth", "heads", "head_dim", "ff_mult")
# What decides the tokens and their projections. The rest of the configuration says how a subject is applied:
# changing it does not turn a saved subject into another encoder's.
_NOT_FINGERPRINTED = ("word", "alpha", "norm", "injection")


@dataclass(frozen=True, kw_only=True)
class SubjectEncoderConfig:
    """Everything needed to rebuild a SubjectEncoder; travels inside its checkpoint. Defaults: the paper's.

    vision_dim: width of the image features. token_dim: width of the subject's tokens.
    num_queries: learned queries, that is tokens per image. width: inner width of the Q-Former.
    depth, heads, head_dim, ff_mult: layers, heads, head size and feed-forward multiple of the Q-Former. An
        encoder of "image_embeds" has no Q-Former, and reads none of these five.
    sites: the cross-attention layers that receive keys and values.
    word: the word the encoder was trained on. features: which output of the vision model it reads.
    alpha, norm: the regularisation it was trained with (BoundSubject's fields of the same names).
    injection: how it was trained; "decoupled" is IP-Adapter's way, without α and norm.
    """

    vision_dim: int = 1280
    token_dim: int = 2048
    num_queries: int = 1024
    width: int = 1280
    depth: int = 4
    heads: int = 20
    head_dim: int = 64
    ff_mult: int = 4
    sites: tuple[Site, ...] = field(default_factory=sdxl_sites)
    word: str = "person"
    features: FeatureLayer = "last_hidden_state"
    alpha: float | None = 2.0
    norm: Norm = "inner"
    injection: TrainedInjection = "nested"

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            check_size(f"encoder configuration: {name}", size)
        object.__setattr__(self, "sites", tuple(self.sites))
        names = {site.name for site in self.sites}
        if not names or len(names) != len(self.sites):
            raise NestedAttentionError(
                f"encoder configuration: {len(self.sites)} sites with {len(names)} different names; expected "
                "at least one site, each named once"
            )
        if not isinstance(self.word, str) or not self.word.strip():
            raise NestedAttentionError(
                f"encoder configuration: word is {self.word!r}; expected a word such as 'person'"
            )
        if self.features not in get_args(FeatureLayer):
            raise NestedAttentionError(
                f"encoder configuration: features is {self.features!r}; expected one of "
                f"{get_args(FeatureLayer)}"
            )
        if self.norm not in ("inner", "head"):
            raise NestedAttentionError(
                f"encoder configuration: norm is {self.norm!r}; expected 'inner' or 'head'"
            )
        if self.injection not in get_args(TrainedInjection):
            raise NestedAttentionError(
                f"encoder configuration: injection is {self.injection!r}; expected one of "
                f"{get_args(TrainedInjection)}"
            )
        numeric = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if self.alpha is not None and not (numeric and 0 < self.alpha < float("inf")):
            raise NestedAttentionError(
                f"encoder configuration: alpha is {self.alpha!r}; expected a positive number, or None for no "
                "regularisation"
            )

    def to_json(self) -> str:
        """A nested encoder's says nothing of injection, so that it is read by versions that know no other."""
        values = asdict(self)
        if self.injection == "nested":
            del values["injection"]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SubjectEncoderConfig:
        """Raises NestedAttentionError for anything `to_json` would not have written."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NestedAttentionError(f"encoder configuration: not valid JSON ({error})") from error
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or {"injection", *values} != known:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise NestedAttentionError(
                f"encoder configuration: found {found}; expected an object with {sorted(known)}. The file "
                "may come from another version of this library"
            )
        keys = {f.name for f in fields(Site)}
        entries = values["sites"]
        if not isinstance(entries, list) or any(not isinstance(e, dict) or set(e) != keys for e in entries):
            raise NestedAttentionError(
                f"encoder configuration: every site must be an object with {sorted(keys)}"
            )
        return cls(**{**values, "sites": tuple(Site(**entry) for entry in entries)})


class SiteProjection(nn.Module):
    """The nested keys and values of one site: two linear layers without bias."""

    def __init__(self, token_dim: int, inner_dim: int, operations: Any = nn) -> None:
        super().__init__()
        self.to_key = operations.Linear(token_dim, inner_dim, bias=False)
        self.to_value = operations.Linear(token_dim, inner_dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, token_dim) → K̆, V̆, each (B, N, inner_dim)"""
        return self.to_key(tokens), self.to_value(tokens)


class PooledProjection(nn.Module):
    """A picture's pooled embedding → its subject tokens: a linear layer and a norm."""

    def __init__(self, vision_dim: int, token_dim: int, num_queries: int, operations: Any = nn) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.proj = operations.Linear(vision_dim, num_queries * token_dim)
        self.norm = operations.LayerNorm(token_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 1, vision_dim) → (B, num_queries, token_dim)"""
        tokens: Tensor = self.norm(self.proj(features[:, 0]).unflatten(-1, (self.num_queries, -1)))
        return tokens


def site_key(name: str) -> str:
    """A site's name as a key of nn.ModuleDict, which may not contain dots (names of sites have no dash)."""
    return name.replace(".", "-")


class SubjectEncoder(nn.Module):
    """Q-Former and per-site projections: see `forward` and `project`.

    operations: a namespace with `Linear` and `LayerNorm`. With torch.nn, inputs are cast to the weights'
    dtype; any other namespace is expected to cast by itself (ComfyUI's manual cast does) and gets inputs as
    they are.
    """

    def __init__(self, config: SubjectEncoderConfig, *, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        self._casts = operations is not nn
        self._fingerprint: str | None = None
        token_dim = config.token_dim
        if config.features == "image_embeds":
            self.pooled = PooledProjection(config.vision_dim, token_dim, config.num_queries, operations)
        else:
            self.qformer = QFormer(
                vision_dim=config.vision_dim,
                token_dim=token_dim,
                num_queries=config.num_queries,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                head_dim=config.head_dim,
                ff_mult=config.ff_mult,
                operations=operations,
            )
        self.projections = nn.ModuleDict(
            {site_key(s.name): SiteProjection(token_dim, s.inner_dim, operations) for s in config.sites}
        )

    @classmethod
    def from_weights(
        cls,
        config: SubjectEncoderConfig,
        weights: dict[str, Tensor],
        digests: dict[str, str],
        *,
        operations: Any = nn,
    ) -> SubjectEncoder:
        """An encoder in evaluation mode around existing weights, which are neither copied nor initialised.

        weights: its state dict. digests: `weight_digests` of the weights as they were saved, which may have
        been in another dtype.
        """
        with torch.device("meta"):
            encoder = cls(config, operations=operations)
        encoder.load_state_dict(weights, assign=True)
        encoder.eval()
        encoder._fingerprint = fingerprint(config, digests)
        return encoder

    def forward(self, features: Tensor) -> Tensor:
        """(n_images, patches, vision_dim) → (n_images, num_queries, token_dim); patches is 1 if it is pooled.

        Raises NestedAttentionError for another rank or width, no image, or values that are not finite. The
        last check is left out in training mode, where it would make the host wait for the device at every
        step.
        """
        self.check_features(features, finite=not self.training)
        read = self.pooled if self.config.features == "image_embeds" else self.qformer
        tokens: Tensor = read(self._cast(features))
        return tokens

    def attention_maps(self, features: Tensor) -> Tensor:
        """`QFormer.attention_maps`: (images, patches, vision_dim) → (images, depth, num_queries, patches)"""
        self.check_features(features)
        return self.qformer.attention_maps(self._cast(features))

    def check_features(self, features: Tensor, *, finite: bool = True) -> None:
        """Raises NestedAttentionError for features `forward` cannot use. finite: look at every value, too."""
        config, shape = self.config, tuple(features.shape)
        pooled = config.features == "image_embeds"
        fits = len(shape) == 3 and shape[-1] == config.vision_dim and 0 not in shape
        if not fits or (pooled and shape[1] != 1):
            patches, other = ("1", "a layer's") if pooled else ("patches", "the pooled embedding")
            raise NestedAttentionError(
                f"image features have shape {shape}; this encoder expects (images, {patches}, "
                f"{config.vision_dim}). Use the CLIP vision model the encoder was trained with and pass its "
                f"{config.features}, not {other}"
            )
        if not features.is_floating_point():
            raise NestedAttentionError(
                f"image features have dtype {features.dtype}; expected a floating-point dtype"
            )
        if finite and not bool(torch.isfinite(features).all()):
            raise NestedAttentionError(
                "image features contain NaN or infinite values; check the reference picture and the "
                "precision the CLIP vision model runs in"
            )

    def project(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(N, token_dim) → site name → (K̆, V̆), each (1, N, inner); (B, N, token_dim) gives (B, N, inner).

        Raises NestedAttentionError for tokens of another rank or width.
        """
        return dict(self.project_each(tokens))

    def project_each(self, tokens: Tensor) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """`project` one site after the other, so that not all need be in memory in the tokens' precision."""
        if tokens.dim() not in (2, 3) or tokens.shape[-1] != self.config.token_dim:
            raise NestedAttentionError(
                f"subject tokens have shape {tuple(tokens.shape)}; this encoder expects (tokens, "
                f"{self.config.token_dim}), with a batch dimension in front if each row has its own subject"
            )
        tokens = self._cast(tokens if tokens.dim() == 3 else tokens[None])  # (1|B, N, token_dim)
        for site in self.config.sites:
            yield site.name, self.projections[site_key(site.name)](tokens)

    def _cast(self, x: Tensor) -> Tensor:
        return x if self._casts else x.to(next(self.parameters()).dtype)

    @property
    def fingerprint(self) -> str:
        """A stable hash of architecture and weights, the same in whichever dtype the weights are held.

        Computed from the weights at each call in training mode, else once.
        """
        if self.training or self._fingerprint is None:
            self._fingerprint = fingerprint(self.config, weight_digests(self.state_dict().items()))
        return self._fingerprint

    def adopt_fingerprint(self, other: SubjectEncoder) -> None:
        """Takes over the fingerprint of an encoder with the same configuration and weights."""
        self._fingerprint = other.fingerprint

    def train(self, mode: bool = True) -> SubjectEncoder:
        if mode:
            self._fingerprint = None  # the weights are about to change
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._fingerprint = None
        return super().load_state_dict(*args, **kwargs)


def weight_digests(weights: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """One hash a tensor, for `fingerprint`.

    Weights are hashed as fp16, in which they are commonly shipped, so that one encoder held in fp32, in fp16
    or (if hashed before the cast) in bf16 has one fingerprint.
    """
    digests = {}
    for name, weight in weights:
        data = weight.detach().to(device="cpu", dtype=torch.float16).contiguous()  # one tensor at a time
        digests[name] = hashlib.blake2b(
            data.view(-1).view(torch.uint8).numpy().data, digest_size=16
        ).hexdigest()
        del weight, data  # before `weights` reads the next one
    return digests


def fingerprint(config: SubjectEncoderConfig, digests: dict[str, str]) -> str:
    """Hash of what decides a subject's tokens and projections: 32 hexadecimal digits."""
    described = {key: value for key, value in asdict(config).items() if key not in _NOT_FINGERPRINTED}
    whole = json.dumps([described, digests], sort_keys=True).encode()
    return hashlib.blake2b(whole, digest_size=16).hexdigest()
