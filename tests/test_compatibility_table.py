"""docs/compatibility.md says what the tests show, where they passed, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

Script = Callable[[str], ModuleType]


def test_the_table_and_the_readme_are_what_the_tests_say(script: Script) -> None:
    compatibility = script("compatibility.py")
    record = compatibility.load_record()
    stale = "stale: run python scripts/compatibility.py"
    assert compatibility.TABLE.read_text(encoding="utf-8") == compatibility.table(record), stale
    text = compatibility.README.read_text(encoding="utf-8")
    assert text == compatibility.readme(text, record), stale


def test_every_claim_is_shown_on_the_oldest_comfyui_and_on_a_newer_one(script: Script) -> None:
    compatibility = script("compatibility.py")
    record = compatibility.load_record()
    project = (compatibility.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest, *newer = record
    assert f'requires-comfyui = ">={oldest}"' in project
    assert newer
    named = {claim.what for claim in compatibility.claims()}
    unshown = {version: named - set(facts["shown"]) for version, facts in record.items()}
    assert not any(unshown.values()), (
        f"{unshown}: run make test, then python scripts/compatibility.py --record"
    )


CASE = """<testcase classname="a" name="b"><properties><property name="composes" value="{0}" />
</properties>{1}</testcase>"""


def test_a_claim_is_recorded_where_all_its_tests_passed(script: Script, tmp_path: Path) -> None:
    compatibility = script("compatibility.py")
    passed, failed, left, away = [claim.what for claim in compatibility.claims()][:4]
    failure, skipped = '<failure message="no" />', '<skipped message="why" />'
    cases = [(passed, ""), (passed, ""), (failed, ""), (failed, failure), (left, skipped)]
    body = "".join(CASE.format(what, inside) for what, inside in cases)
    (tmp_path / "new.xml").write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    facts = {"comfyui": "0.33.0", "front_end": "1.49.6", "torch": "2.14.1", "python": "3.12.1"}
    (tmp_path / "new.json").write_text(json.dumps(facts))
    before = {
        "0.33.0": {"front_end": "1.0", "shown": [failed, left, "a claim that no test makes"]},
        "0.3.64": {"front_end": "1.27.10", "shown": [away]},
    }
    record = compatibility.take_up(before, tmp_path)
    assert list(record) == ["0.3.64", "0.33.0"]
    assert record["0.3.64"] == before["0.3.64"]
    assert record["0.33.0"]["front_end"] == "1.49.6"
    assert set(record["0.33.0"]["shown"]) == {passed, left}


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
