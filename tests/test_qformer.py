"""The Q-Former against an explicit construction in fp64, and what its structure promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nested_attention.qformer import QFormer, QFormerAttention

SIZES = {
    "vision_dim": 10,
    "token_dim": 12,
    "num_queries": 5,
    "width": 16,
    "depth": 2,
    "heads": 3,
    "head_dim": 4,
}


def make(**changes: int) -> QFormer:
    torch.manual_seed(0)
    model = QFormer(**{**SIZES, **changes})
    for parameter in model.parameters():  # norms start as the identity: make them count
        nn.init.normal_(parameter, std=0.5)
    return model


def explicit(model: QFormer, features: Tensor) -> Tensor:
    """The Q-Former written out, one image, one head and one query at a time."""
    w = {name: p.detach().double() for name, p in model.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
            + w[f"{name}.bias"]
        )

    outputs = []
    for image in features.double():
        x = image @ w["proj_in.weight"].T + w["proj_in.bias"]
        latents = w["latents"][0]
        for i, layer in enumerate(model.layers):
            at = f"layers.{i}.attention"
            heads = layer.attention.heads
            inner = w[f"{at}.to_q.weight"].shape[0]
            size = inner // heads
            normed = norm(latents, f"{at}.norm2")
            seen = torch.cat([norm(x, f"{at}.norm1"), normed])
            query, key, value = (
                normed @ w[f"{at}.to_q.weight"].T,
                seen @ w[f"{at}.to_kv.weight"][:inner].T,
                seen @ w[f"{at}.to_kv.weight"][inner:].T,
            )
            attended = torch.zeros_like(query)
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                for n in range(len(latents)):
                    scores = key[:, part] @ query[n, part] / math.sqrt(size)
                    shares = scores.exp() / scores.exp().sum()
                    attended[n, part] = shares @ value[:, part]
            latents = latents + attended @ w[f"{at}.to_out.weight"].T
            ff = f"layers.{i}.feed_forward"
            hidden = norm(latents, f"{ff}.0") @ w[f"{ff}.1.weight"].T
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            latents = latents + hidden @ w[f"{ff}.3.weight"].T
        outputs.append(norm(latents @ w["proj_out.weight"].T + w["proj_out.bias"], "norm_out"))
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "changes", [{}, {"heads": 1, "head_dim": 7}, {"depth": 1, "ff_mult": 2}, {"num_queries": 1}]
)
def test_equals_the_explicit_construction(changes: dict[str, int]) -> None:
    model = make(**changes)
    features = torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(1))
    expected = explicit(model, features)
    assert expected.shape == (3, model.latents.shape[1], 12)
    torch.testing.assert_close(model(features).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.double()(features.double()), expected, rtol=1e-10, atol=1e-10)


def test_the_order_of_patches_does_not_matter_but_their_content_does() -> None:
    model = make()
    features = torch.randn(1, 7, 10)
    shuffled = features[:, torch.randperm(7, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(model(shuffled), model(features), rtol=1e-4, atol=1e-5)
    changed = features.clone()
    changed[0, 3] += 1
    assert (model(changed) - model(features)).abs().max() > 1e-2


def test_every_weight_takes_part() -> None:
    model = make()
    model(torch.randn(2, 7, 10)).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = make()
    features = torch.randn(3, 7, 10)
    torch.testing.assert_close(model(features)[1:2], model(features[1:2]), rtol=1e-5, atol=1e-5)


def test_attention_maps_can_be_read_from_the_outside() -> None:
    """`project` gives what `forward` attends with: maps built from it reproduce the layer's output."""
    model = make()
    caught: list[tuple[QFormerAttention, tuple[Tensor, Tensor], Tensor]] = []
    for layer in model.layers:
        layer.attention.register_forward_hook(lambda module, args, out: caught.append((module, args, out)))
    model(torch.randn(2, 7, 10))
    assert len(caught) == 2
    for module, args, out in caught:
        q, k, v = module.project(*args)
        maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # (B, H, N, P + N)
        assert maps.shape == (2, 3, 5, 12)
        torch.testing.assert_close(
            module.to_out((maps @ v).transpose(1, 2).flatten(2)), out, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = QFormer(**SIZES)
    features = torch.randn(2, 7, 10)
    reference = model(features)
    out = model.to(dtype)(features.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - reference).norm() < 0.05 * reference.norm()


def test_operations_make_every_layer_with_weights() -> None:
    made: list[nn.Module] = []

    class Operations:
        @staticmethod
        def Linear(*args: int, **kwargs: bool) -> nn.Module:  # noqa: N802
            made.append(nn.Linear(*args, **kwargs))
            return made[-1]

        @staticmethod
        def LayerNorm(*args: int) -> nn.Module:  # noqa: N802
            made.append(nn.LayerNorm(*args))
            return made[-1]

    model = QFormer(**SIZES, operations=Operations)
    owners = {id(p) for module in made for p in module.parameters()}
    assert [name for name, p in model.named_parameters() if id(p) not in owners] == ["latents"]


def test_nothing_but_torch_and_einops_is_imported() -> None:
    import ast
    from pathlib import Path

    import nested_attention.qformer as module

    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or ".").split(".")[0] if not node.level else ".")
    assert roots <= {"torch", "einops", "typing", "__future__"}
