"""Layouts of other people's encoder files, recognised by structure under any prefix.

Known are IP-Adapter (of SDXL and SD 1.5), plain and Plus, and the paper's official release, whose code
derives from Plus. Plus and the release hold a perceiver resampler (marked by its `latents`, the learned
queries), the plain one a linear layer and a norm for the pooled embedding. All hold, for every
cross-attention layer in diffusers' order (down, up, mid), one projection to keys and one to values. Published
files and training dumps name them `image_proj.* / ip_adapter.N.to_k_ip`, `image_proj_model.* /
adapter_modules.N.to_k_ip`, or by the path of the layer in the UNet; N counts 1, 3, 5 … in the published ones.
None of that is relied upon: the resampler is found by its latents, the projections by a name that says key or
value, a number or a path, and their shapes.

The official file itself has not been at hand: what is not known of it is an override with a stated default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..encoder import SubjectEncoderConfig, site_key
from ..errors import NestedAttentionError
from ..sites import SD15_CONTEXT, Site, check_size, family, sd15_sites, sdxl_sites

Shapes = Mapping[str, tuple[int, ...]]

_HEAD_DIM = 64  # of the Q-Former in every published file; shapes give heads · head_dim only
_IP_ADAPTER_QUERIES = 16  # IP-Adapter Plus reads the penultimate layer, the paper the last one
_QFORMER_PARTS = {"latents", "proj_in", "layers", "proj_out", "norm_out"}
_POOLED_PARTS = {"proj", "norm"}
_FACE_ID_WIDTH = 512  # of the face recogniser's embedding that IP-Adapter's FaceID files read
# Frozen models that training scripts save along.
_FROZEN = {"unet", "text_encoder", "text_encoder_2", "vae", "image_encoder"}
_SITE_PATH = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2"
)
_KINDS = {"k": "key", "key": "key", "keys": "key", "v": "value", "value": "value", "values": "value"}


@dataclass(frozen=True)
class Layout:
    """config: the encoder the file holds. names: name in SubjectEncoder's state dict → name in the file."""

    config: SubjectEncoderConfig
    names: dict[str, str]


@dataclass(frozen=True)
class _Projection:
    """One tensor that looks like a projection: `family` is what all layers' names share."""

    name: str
    family: str
    kind: str  # "key" or "value"
    place: int | str  # number in its list, or the site's name


def recognise(shapes: Shapes, overrides: Mapping[str, Any], *, ignore_unexpected: bool = False) -> Layout:
    """The layout of a file that is not ours, from its tensors' names and shapes.

    overrides: SubjectEncoderConfig's fields that shapes cannot tell (sites, heads, head_dim, word, features,
    alpha, norm). Raises NestedAttentionError that says what was found and what was expected.
    """
    _refuse_face_id(shapes)
    prefix, parts = _find_resampler(shapes), _QFORMER_PARTS
    if prefix is None:
        prefix, parts = _find_pooled(shapes), _POOLED_PARTS
    own = {n[len(prefix) :]: n for n in shapes if _is_under(n, prefix, parts)}
    read = _read_resampler if parts is _QFORMER_PARTS else _read_pooled
    config = read({short: shapes[name] for short, name in own.items()}, overrides)
    rest = [name for name in shapes if not _is_under(name, prefix, parts)]
    pairs = _pair_with_sites(_find_projections(rest, shapes), config, shapes)

    module = "qformer" if parts is _QFORMER_PARTS else "pooled"
    names = {f"{module}.{_rename(short)}": name for short, name in own.items()}
    for site, (key, value) in zip(config.sites, pairs, strict=True):
        names[f"projections.{site_key(site.name)}.to_key.weight"] = key
        names[f"projections.{site_key(site.name)}.to_value.weight"] = value
    taken = set(names.values())
    unknown = sorted(n for n in rest if n not in taken and not _FROZEN & set(n.split(".")))
    if unknown and not ignore_unexpected:
        raise NestedAttentionError(
            f"{len(unknown)} tensors belong to no known layout: {_some(unknown)}. They may change what the "
            "encoder computes, so the file is not used as it is; set ignore_unexpected if you know that "
            "they do not"
        )
    return Layout(config, names)


def _refuse_face_id(shapes: Shapes) -> None:
    """IP-Adapter's FaceID files hold a projection of a face recogniser's embedding, and mostly a LoRA."""
    for name, shape in shapes.items():
        lora = re.search(r"\.to_[qkv]_lora\.", name) is not None
        embedding = name.endswith("proj.0.weight") and shape[1:] == (_FACE_ID_WIDTH,)
        if lora or embedding or ".perceiver_resampler." in name:
            raise NestedAttentionError(
                f"it is an IP-Adapter FaceID ({name}): those read the embedding of InsightFace's face "
                "recogniser, whose weights are for non-commercial research only and are not part of this "
                "pack. Use IP-Adapter Plus Face (`nested-attention download ip-adapter-plus-face`)"
            )


def _find_pooled(shapes: Shapes) -> str:
    """What stands before a plain IP-Adapter's `proj` and `norm`."""
    found = [n[: -len("proj.weight")] for n in shapes if n.endswith("proj.weight")]
    found = [p for p in found if f"{p}proj.bias" in shapes and len(shapes.get(f"{p}norm.weight", ())) == 1]
    if len(found) == 1:
        return found[0]
    raise NestedAttentionError(
        "no Q-Former: expected learned queries, a tensor `latents` of shape (1, queries, width), or a plain "
        "IP-Adapter's image_proj.proj and image_proj.norm; found "
        f"{_some(sorted(shapes)) or 'no tensors at all'}. A LoRA or a checkpoint of SDXL itself is no "
        "subject encoder"
    )


def _find_resampler(shapes: Shapes) -> str | None:
    """What stands before the tensors of the one Q-Former; None without one."""
    found = [n for n, shape in shapes.items() if n.split(".")[-1] == "latents" and len(shape) == 3]
    if len(found) == 1:
        return found[0][: -len("latents")]
    if found:
        raise NestedAttentionError(
            f"several Q-Formers: {_some(found)}; expected one tensor `latents` of rank 3"
        )
    return None


def _is_under(name: str, prefix: str, parts: set[str]) -> bool:
    return name.startswith(prefix) and name[len(prefix) :].split(".")[0] in parts


def _read_pooled(shapes: Shapes, overrides: Mapping[str, Any]) -> SubjectEncoderConfig:
    weight, token_dim = shapes["proj.weight"], shapes["norm.weight"][0]
    if len(weight) != 2 or not token_dim or not weight[0] or weight[0] % token_dim:
        raise NestedAttentionError(
            f"the projection of the pooled embedding has shape {weight}; expected (tokens × {token_dim}, its "
            "width)"
        )
    derived: dict[str, Any] = {
        "vision_dim": weight[1],
        "token_dim": token_dim,
        "num_queries": weight[0] // token_dim,
        "sites": _sites(token_dim),
        "features": "image_embeds",
        "injection": "decoupled",
    }
    return SubjectEncoderConfig(**{**derived, **overrides})


def _sites(token_dim: int) -> tuple[Site, ...]:
    """The layers of the base model whose text is as wide as the tokens are."""
    return sd15_sites() if token_dim == SD15_CONTEXT else sdxl_sites()


def _rename(short: str) -> str:
    short = re.sub(r"^layers\.(\d+)\.0\.", r"layers.\1.attention.", short)
    return re.sub(r"^layers\.(\d+)\.1\.", r"layers.\1.feed_forward.", short)


def _read_resampler(shapes: Shapes, overrides: Mapping[str, Any]) -> SubjectEncoderConfig:
    def size(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes or len(shapes[name]) != rank:
            found = f"shape {shapes[name]}" if name in shapes else "no such tensor"
            raise NestedAttentionError(f"the Q-Former's {name}: found {found}, expected {rank} dimensions")
        return shapes[name]

    _, queries, width = size("latents", 3)
    vision_dim = size("proj_in.weight", 2)[1]
    token_dim = size("proj_out.weight", 2)[0]
    inner = size("layers.0.0.to_q.weight", 2)[0]
    hidden = size("layers.0.1.1.weight", 2)[0]
    if not width or hidden % width:
        raise NestedAttentionError(
            f"the Q-Former's feed-forward width is {hidden}; expected a multiple of its width {width}"
        )
    depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    heads, head_dim = _split_heads(inner, overrides.get("heads"), overrides.get("head_dim"))
    derived: dict[str, Any] = {
        "vision_dim": vision_dim,
        "token_dim": token_dim,
        "num_queries": queries,
        "width": width,
        "depth": depth,
        "ff_mult": hidden // width,
        "sites": _sites(token_dim),
        "features": "penultimate_hidden_states" if queries == _IP_ADAPTER_QUERIES else "last_hidden_state",
        "injection": "decoupled" if queries == _IP_ADAPTER_QUERIES else "nested",
    }
    return SubjectEncoderConfig(**{**derived, **overrides, "heads": heads, "head_dim": head_dim})


def _split_heads(inner: int, heads: int | None, head_dim: int | None) -> tuple[int, int]:
    for label, given in (("heads", heads), ("head_dim", head_dim)):
        if given is not None:
            check_size(label, given)
    if heads is None:
        head_dim = head_dim or _HEAD_DIM
        heads = inner // head_dim
    elif head_dim is None:
        head_dim = inner // heads
    if heads * head_dim != inner or not inner:
        raise NestedAttentionError(
            f"the Q-Former's attention is {inner} wide, which is not {heads} heads of {head_dim}; give "
            "load_subject_encoder (in Python) heads= or head_dim= as the encoder was trained"
        )
    return heads, head_dim


def _find_projections(names: Iterable[str], shapes: Shapes) -> list[_Projection]:
    """The one family of key and value projections, in no order."""
    families: dict[str, list[_Projection]] = {}
    for name in names:
        projection = _parse_projection(name) if len(shapes[name]) == 2 else None
        if projection is not None:
            families.setdefault(projection.family, []).append(projection)
    # A training dump holds the projections twice, in a list of their own and inside the frozen UNet.
    own = {family: members for family, members in families.items() if not _FROZEN & set(family.split("."))}
    chosen = own or families
    if len(chosen) != 1:
        found = _some(sorted(chosen)) or "none"
        raise NestedAttentionError(
            "expected one list of key and value projections, a pair for each cross-attention layer "
            f"(…1.to_k_ip.weight, …1.to_v_ip.weight, …); found {found}"
        )
    return next(iter(chosen.values()))


def _parse_projection(name: str) -> _Projection | None:
    """`ip_adapter.17.to_k_ip.weight` → family `ip_adapter.#.to_*_ip`, kind key, place 17."""
    parts = name.split(".")
    if parts.pop() != "weight":
        return None
    path = _SITE_PATH.search(name)
    rest = name[path.end() + 1 :].split(".")[:-1] if path else parts
    words = [i for i, part in enumerate(rest) if not part.isdecimal()]
    leaf = rest[words[-1]] if words else ""
    if path and rest == [leaf] and leaf in ("to_k", "to_v"):
        return None  # the UNet's own text projections
    kinds = [piece for piece in leaf.split("_") if piece in _KINDS]
    if len(kinds) != 1:
        return None
    rest[words[-1]] = "_".join("*" if piece in _KINDS else piece for piece in leaf.split("_"))
    kind = _KINDS[kinds[0]]
    if path:
        return _Projection(name, ".".join([*name[: path.start()].split("."), "#", *rest]), kind, path.group())
    numbers = [i for i, part in enumerate(rest) if part.isdecimal()]
    if not numbers or len(rest[numbers[-1]]) > 9:
        return None
    place = int(rest[numbers[-1]])
    rest[numbers[-1]] = "#"
    return _Projection(name, ".".join(rest), kind, place)


def _pair_with_sites(
    projections: list[_Projection], config: SubjectEncoderConfig, shapes: Shapes
) -> list[tuple[str, str]]:
    """(key, value) tensor names in the order of config.sites, checked against every site's widths."""
    keys = {p.place: p.name for p in projections if p.kind == "key"}
    values = {p.place: p.name for p in projections if p.kind == "value"}
    odd = sorted({**keys, **values}[place] for place in set(keys) ^ set(values))
    if odd:
        raise NestedAttentionError(
            f"{len(keys)} key projections and {len(values)} value projections; expected one of each for "
            f"every layer. Without a partner: {_some(odd)}"
        )
    sites = config.sites
    by_path = any(isinstance(place, str) for place in keys)
    places: list[Any] = [site.name for site in sites] if by_path else sorted(keys)
    if len(keys) != len(sites) or (by_path and set(places) != set(keys)):
        raise NestedAttentionError(
            f"it is an encoder for {family(len(keys), config.token_dim)}; expected one for "
            f"{family(len(sites), sites[0].context_dim)}. Choose an encoder that was trained for the base "
            "model you use; for another UNet, give load_subject_encoder (in Python) sites= from it"
        )
    _check_widths(config)
    for site, place in zip(sites, places, strict=True):
        for name in (keys[place], values[place]):
            if shapes[name] != (site.inner_dim, config.token_dim):
                raise NestedAttentionError(
                    f"{name} has shape {shapes[name]}; expected {(site.inner_dim, config.token_dim)} for "
                    f"{site.name}. Either it was made for another UNet (in Python, give load_subject_encoder "
                    "sites= from it), or its layers are not in diffusers' order: down, up, mid"
                )
    return [(keys[place], values[place]) for place in places]


def _check_widths(config: SubjectEncoderConfig) -> None:
    for site in config.sites:
        if site.context_dim != config.token_dim:
            raise NestedAttentionError(
                f"its tokens are {config.token_dim} wide; expected those of an encoder for "
                f"{family(len(config.sites), site.context_dim)}. SD 1.5's encoders have 768, SDXL's "
                "2048; for another UNet, give load_subject_encoder (in Python) sites= from it"
            )


def _some(names: Iterable[str], count: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
