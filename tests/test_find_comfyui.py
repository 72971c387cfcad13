"""Which ComfyUIs are found, the environment of each, and what `make test` says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from nested_attention import find_comfyui as finder

Script = Callable[[str], ModuleType]


def comfyui(folder: Path, version: str = "0.3.64", requirements: str = "torch\n") -> Path:
    """A folder that looks like ComfyUI."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "comfy/sd.py"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    (folder / "requirements.txt").write_text(requirements)
    return folder.resolve()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without ComfyUI."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(finder, "_PACK", tmp_path / "somewhere" / "pack")
    return tmp_path


def folders() -> list[Path]:
    return [found.folder for found in finder.find_every_comfyui()[0]]


def test_every_comfyui_in_the_default_place(home: Path) -> None:
    assert folders() == []
    assert finder.find_comfyui()[0] is None
    old, new = comfyui(home / "comfy" / "ComfyUI"), comfyui(home / "comfy" / "ComfyUI-0.33", "0.33.0")
    (home / "comfy" / "ComfyUI-models").mkdir()
    assert folders() == [old, new]
    found, where = finder.find_every_comfyui()
    assert [each.version for each in found] == ["0.3.64", "0.33.0"]
    assert [each.name for each in found] == ["ComfyUI", "ComfyUI-0.33"]
    assert "default place" in where


def test_the_one_that_contains_the_pack_comes_before_the_default_place(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comfyui(home / "comfy" / "ComfyUI")
    around = comfyui(home / "other")
    monkeypatch.setattr(finder, "_PACK", around / "custom_nodes" / "nested-attention")
    assert folders() == [around]


def test_comfyui_path_names_several(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comfyui(home / "comfy" / "ComfyUI")
    first, second = comfyui(home / "b" / "ComfyUI"), comfyui(home / "a" / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join([str(first), str(second), str(first), ""]))
    found, where = finder.find_every_comfyui()
    assert [each.folder for each in found] == [first, second]
    assert found[0].name != found[1].name
    assert where == "COMFYUI_PATH"


def test_a_name_in_comfyui_path_that_is_none_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = comfyui(home / "right"), home / "wrong"
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join([str(right), str(wrong)]))
    found, where = finder.find_every_comfyui()
    assert found == []
    assert str(wrong) in where
    assert str(right) not in where


@pytest.mark.parametrize("prefix", [".venv/ComfyUI-0.33", "comfy/ComfyUI-0.33/venv"])
def test_of_several_it_is_the_one_this_python_is_installed_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    old, new = comfyui(home / "comfy" / "ComfyUI"), comfyui(home / "comfy" / "ComfyUI-0.33")
    assert finder.find_comfyui()[0] == old
    monkeypatch.setattr(sys, "prefix", str(home / prefix))
    assert finder.find_comfyui()[0] == new


@pytest.mark.parametrize("name", [".venv", "venv"])
def test_the_environment_of_a_comfyui_is_its_own_one(home: Path, name: str) -> None:
    found = finder.ComfyUI(comfyui(home / "ComfyUI"))
    assert found.python is None
    place = finder.interpreter(found.folder / name)
    place.parent.mkdir(parents=True)
    place.touch()
    assert found.python == place


def test_an_environment_sees_what_its_base_has(home: Path, script: Script) -> None:
    """Through one virtual environment to the next, which venv itself does not do."""
    install = script("install.py")
    base = home / "base"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(base)], check=True)
    python = finder.interpreter(base)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.check_output([str(python), "-c", ask], text=True).strip())
    (packages / "only_in_the_base.py").write_text("here = True\n")
    install._create(home / "built", python)
    seen = "import only_in_the_base, pip; print(only_in_the_base.here)"
    built = finder.interpreter(home / "built")
    assert subprocess.check_output([str(built), "-c", seen], text=True).strip() == "True"


@pytest.fixture
def commands(script: Script, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What install.py would run, in an environment with torch 2.14.1 and without torchaudio."""
    install = script("install.py")
    ran: list[list[str]] = []

    def create(place: Path, base: Path) -> None:
        python = finder.interpreter(place)
        python.parent.mkdir(parents=True)
        python.touch()
        ran.append(["create", str(place), str(base)])

    answers = {install._TORCH: "torch==2.14.1", install._LACKS_TORCHAUDIO: "2.14.1"}
    monkeypatch.setattr(install, "_create", create)
    monkeypatch.setattr(install, "_run", lambda command: ran.append(list(command[4:])))
    monkeypatch.setattr(install, "_output", lambda python, *arguments: answers[arguments[1]])
    return ran


def test_torchaudio_is_installed_alone_and_only_where_it_is_listed(
    home: Path, script: Script, commands: list[list[str]]
) -> None:
    install = script("install.py")
    listed = finder.ComfyUI(comfyui(home / "listed", requirements="torch\ntorchaudio\nnumpy>=1.25\n"))
    install.environment(listed, home / "venv")
    assert commands[-1][-2:] == ["--no-deps", "torchaudio<=2.14.1"]
    place = home / "venv" / listed.name
    assert (place / "comfyui.txt").read_text().split() == ["torch", "numpy>=1.25"]
    assert (place / "constraints.txt").read_text() == "torch==2.14.1"

    install.environment(finder.ComfyUI(comfyui(home / "unlisted")), home / "venv")
    assert "torchaudio<=2.14.1" not in commands[-1]


def test_an_environment_is_made_once_for_a_comfyui_and_its_requirements(
    home: Path, script: Script, commands: list[list[str]]
) -> None:
    install = script("install.py")
    found = finder.ComfyUI(comfyui(home / "ComfyUI"))
    python = install.environment(found, home / "venv")
    assert python == finder.interpreter(home / "venv" / found.name)
    library = finder.interpreter(home / "venv" / "library")
    made = [command[1:] for command in commands if command[0] == "create"]
    assert made == [[str(library.parents[1]), sys.executable], [str(python.parents[1]), str(library)]]

    commands.clear()
    install.environment(found, home / "venv")
    assert commands == []
    (found.folder / "requirements.txt").write_text("torch\nnew\n")
    install.environment(found, home / "venv")
    assert commands and not any(command[0] == "create" for command in commands)


REPORT = """<testsuites><testsuite><testcase classname="comfyui.test_a" name="test_one" />
<testcase classname="comfyui.test_a" name="test_two[x]"><failure message="no">text</failure></testcase>
<testcase classname="comfyui.test_b" name="test_three"><error message="setup">text</error></testcase>
<testcase classname="comfyui.test_b" name="test_four"><skipped message="needs a GPU" /></testcase>
</testsuite></testsuites>"""


def test_the_closing_lines_name_what_failed_and_why_tests_were_left_out(home: Path, script: Script) -> None:
    (home / "report.xml").write_text(REPORT)
    part = script("run_tests.py").read(home / "report.xml", "ComfyUI 1")
    assert part.lines() == [
        "ComfyUI 1: 1 passed, 2 failed, 1 left out, in 0 s",
        "    1 left out: needs a GPU",
        "    failed: comfyui.test_a::test_two[x]",
        "    failed: comfyui.test_b::test_three",
    ]


def run_with(
    script: Script, monkeypatch: pytest.MonkeyPatch, found: Sequence[finder.ComfyUI], tests: str, *given: str
) -> tuple[list[str], list[list[str]]]:
    """The problems of each part, and pytest's arguments, where every run of pytest reports `tests`."""
    runner = script("run_tests.py")
    asked: list[list[str]] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        asked.append(command)
        report = next(each.split("=", 1)[1] for each in command if each.startswith("--junitxml="))
        Path(report).write_text(f"<testsuites><testsuite>{tests}</testsuite></testsuites>")
        return SimpleNamespace(returncode=0)

    versions = '{"python": "3.12.1", "torch": "2.14.1", "front_end": "1.49.6"}'
    monkeypatch.setattr(runner, "REPORTS", Path.home())
    monkeypatch.setattr(runner, "environment", lambda comfyui, folder: Path(sys.executable))
    monkeypatch.setattr(runner.subprocess, "run", run)
    monkeypatch.setattr(runner.subprocess, "check_output", lambda *arguments, **options: versions)
    chosen = SimpleNamespace(venv=Path(".venv"), full=False)
    done = runner.parts(chosen, found, given)
    return [part.problem for part in done], asked


def test_a_comfyui_that_ran_no_test_has_failed(
    home: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = [finder.ComfyUI(comfyui(home / name)) for name in ("one", "two")]
    one = '<testcase classname="a" name="b" />'
    skipped = '<testcase classname="a" name="b"><skipped message="why" /></testcase>'
    assert run_with(script, monkeypatch, cores, one)[0] == ["", "", ""]
    assert run_with(script, monkeypatch, cores, skipped)[0] == ["", *2 * ["none of its tests ran"]]
    assert run_with(script, monkeypatch, cores, "")[0] == ["", *2 * ["none of its tests ran"]]
    # Who chooses tests that need no ComfyUI runs none in it.
    assert run_with(script, monkeypatch, cores, "", "test_attention.py")[0] == ["", "", ""]


def test_what_both_need_not_repeat_runs_once(
    home: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = [finder.ComfyUI(comfyui(home / "old")), finder.ComfyUI(comfyui(home / "new", "0.33.0"))]
    _, (library, old, new) = run_with(script, monkeypatch, cores, "", "-q")
    assert "--part=library" in library
    assert "--part=comfyui" in old and "--part=comfyui" in new
    assert "--once-on=ComfyUI 0.3.64" in new
    assert not any(argument.startswith("--once-on") for argument in old)
    assert "--part=all" in run_with(script, monkeypatch, [], "")[1][0]
