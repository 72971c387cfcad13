"""What the registry, ComfyUI and a newcomer rely on: metadata that agree, and rules that every file keeps."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nested_attention

ROOT = Path(__file__).resolve().parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
SOURCES = sorted(
    [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "nested_attention").rglob("*.py")]
)
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "node_helpers",
    "nodes",
    "server",
}


def value(key: str) -> str:
    found = re.search(rf'^{re.escape(key)} = "(.*)"', PROJECT, re.M)
    assert found, f"pyproject.toml has no {key}"
    return found.group(1)


def listed(text: str) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", entry).group().lower() for entry in re.findall(r'"([^"]+)"', text)}  # type: ignore[union-attr]


def required(path: str) -> set[str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / path).read_text().splitlines()]
    return {re.match(r"[A-Za-z0-9_.-]+", line).group().lower() for line in lines if line and line[0] != "-"}  # type: ignore[union-attr]


def imports(path: Path) -> Iterator[tuple[int, str, ast.AST]]:
    """(level, module, node) of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", node


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_metadata_for_the_registry() -> None:
    assert "comfyui" not in value("name").lower()
    assert value("version") == nested_attention.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", value("version"))
    assert value("license") == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert value("PublisherId")
    assert value("DisplayName")
    assert (ROOT / value("Icon")).is_file()
    assert value("requires-comfyui").startswith(">=")
    assert value("Repository").startswith("https://")


def test_requirements_are_few_and_stated_once() -> None:
    direct = re.search(r"^dependencies = \[(.*?)\]", PROJECT, re.M)
    assert direct
    assert listed(direct.group(1)) == required("requirements.txt")
    assert not re.search(
        r"[=<>]", re.sub(r"#.*", "", (ROOT / "requirements.txt").read_text())
    )  # unrestrictive
    extras = PROJECT[PROJECT.index("[project.optional-dependencies]") : PROJECT.index("[project.scripts]")]
    assert listed(extras) - {"nested-attention"} == required("requirements-dev.txt")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_inside_the_pack_are_relative_and_comfyui_stays_in_its_host(path: Path) -> None:
    inside = path.parent == ROOT or {"nodes", "comfy"} & set(path.relative_to(ROOT).parts)
    for level, module, node in imports(path):
        top = module.split(".")[0]
        where = f"{name(path)}:{node.lineno}"  # type: ignore[attr-defined]
        assert level or top != "nested_attention", f"{where} imports {module}; write it relative"
        assert level or inside or top not in COMFYUI, f"{where} imports {module} outside a comfy/"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_executed_unpickled_or_installed(path: Path) -> None:
    for _, module, _ in imports(path):
        assert module.split(".")[0] not in {
            "pickle",
            "marshal",
            "shelve",
            "dill",
            "cloudpickle",
            "pip",
            "ensurepip",
        }
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "__import__"}, (
                f"{name(path)}:{node.lineno} {called}"
            )
            if called == "torch.load":
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True", f"{name(path)}:{node.lineno}"


def test_the_mechanism_needs_torch_and_einops_only() -> None:
    for file in ("attention.py", "qformer.py"):
        path = ROOT / "nested_attention" / file
        outside = {module.split(".")[0] for level, module, _ in imports(path) if not level}
        assert outside - sys.stdlib_module_names <= {"torch", "einops"}, file


def test_importing_the_library_is_quiet_and_offline() -> None:
    """No output, no connection and no heavy import, in an interpreter of its own."""
    code = (
        "import sys, socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from nested_attention import attention, checkpoint, encoder, prompt, sites, subject\n"
        "assert not {'diffusers', 'transformers', 'comfy', 'PIL', 'typer'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
