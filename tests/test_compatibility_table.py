"""docs/compatibility.md says what the tests show, and no more."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

Script = Callable[[str], ModuleType]


def test_the_table_is_what_the_tests_say(script: Script) -> None:
    compatibility = script("compatibility.py")
    written = compatibility.TABLE.read_text(encoding="utf-8")
    assert written == compatibility.table(), "stale: run python scripts/compatibility.py"


def test_no_claim_is_made_twice_and_the_promised_ones_are_there(script: Script) -> None:
    names = [claim.what for claim in script("compatibility.py").claims()]
    assert len(names) == len(set(names))
    promised = (
        "LoRA",
        "ControlNet",
        "IPAdapter",
        "PAG",
        "SAG",
        "HyperTile",
        "ToMe",
        "FreeU",
        "Deep shrink",
        "Set Area",
        "Set Mask",
        "Combine",
        "Concat",
        "Average",
        "img2img",
        "Inpainting",
        "Hires fix",
        "Batches",
        "Off-square",
        "cfg 1",
        "torch.compile",
        "Partial loading",
        "Attention overrides",
        "PerpNeg",
        "DualCFG",
        "Style-prompt",
    )
    missing = [wanted for wanted in promised if not any(wanted in name for name in names)]
    assert missing == []
