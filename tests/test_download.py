"""Known weights and their download, against a hub of our own: nothing here reaches the network."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import huggingface_hub
import huggingface_hub.errors
import huggingface_hub.file_download
import pytest
import torch
import typer.testing
from safetensors.torch import save
from synthetic_checkpoints import NAMING, TINY_SITES, Sizes, encoder_tensors, plain_tensors, write

from nested_attention.checkpoint import load_subject_encoder
from nested_attention.cli import app as cli
from nested_attention.cli import download as download_command
from nested_attention.errors import NestedAttentionError
from nested_attention.storage import download, layouts, registry
from nested_attention.storage.registry import find_weights, known_weights, weights_for

PERSON = "nested-attention-person"
TARGET = "nested_attention/nested_attention_person.safetensors"
CONTENT = save({"latents": torch.zeros(1, 2, 4)})


@dataclass
class Hub:
    """What huggingface_hub would do: one file, announced with its size and hash, sent in two halves."""

    content: bytes = CONTENT
    announced: bytes = CONTENT
    etag: str | None = None
    any_file: bool = False
    ignores_range: bool = False
    fails: list[Exception] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)

    def facts(self, url: str) -> Any:
        person = "orpatashnik/NestedAttentionEncoder", "personalization_encoder/model.safetensors"
        assert self.any_file or url == huggingface_hub.hf_hub_url(*person)
        if self.fails and not self.asked:
            raise self.fails.pop(0)
        digest = self.etag or hashlib.sha256(self.announced).hexdigest()
        return SimpleNamespace(size=len(self.announced), etag=digest, commit_hash="c0ffee")

    def get(
        self,
        url: str,
        temp_file: BinaryIO,
        *,
        resume_size: int,
        headers: dict[str, str],
        expected_size: int | None,
        displayed_filename: str,
    ) -> None:
        assert headers and expected_size == len(self.announced)
        self.asked.append(url)
        self.resumed.append(resume_size)
        if self.fails:
            temp_file.write(self.content[resume_size : len(self.content) // 2])
            raise self.fails.pop(0)
        temp_file.write(self.content[0 if self.ignores_range else resume_size :])
        if (found := temp_file.tell()) > expected_size:  # as the client checks it
            raise OSError(f"Consistency check failed: file should be of size {expected_size} but has {found}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", made.facts)
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", made.get)
    return made


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    return tmp_path / "ComfyUI"


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str, answer: str | None = None, find: bool = True) -> tuple[int, str]:
        monkeypatch.setattr(
            download_command, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: answer is not None))
        )
        where = ["--comfyui", str(comfyui)] if find else []
        runner = typer.testing.CliRunner()
        result = runner.invoke(cli.app, ["download", *arguments, *where], input=answer)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return call


def installed(comfyui: Path) -> list[str]:
    models = comfyui / "models"
    return sorted(str(path.relative_to(models)) for path in models.rglob("*") if path.is_file())


def test_the_file_goes_to_its_folder_under_its_name_and_nothing_else_stays(
    run: Run, hub: Hub, comfyui: Path
) -> None:
    code, said = run(PERSON, "--accept-licence")
    assert code == 0, said
    assert installed(comfyui) == [TARGET]
    assert (comfyui / "models" / TARGET).read_bytes() == CONTENT
    assert list((comfyui / "models" / "nested_attention").iterdir()) == [comfyui / "models" / TARGET]
    # The commit that the size and the hash belong to.
    assert hub.asked == [
        huggingface_hub.hf_hub_url(
            "orpatashnik/NestedAttentionEncoder",
            "personalization_encoder/model.safetensors",
            revision="c0ffee",
        )
    ]
    assert "nested-attention download clip-vit-h" in said
    assert "its layout is not recognised" in said  # a file of one tensor: said now, not when it is used
    code, said = run(PERSON, "--accept-licence")
    assert code == 0
    assert "Already there" in said
    assert len(hub.asked) == 1


def test_the_licence_comes_first_and_is_asked_for(run: Run, hub: Hub, comfyui: Path) -> None:
    code, said = run(PERSON, answer="n\n")
    assert code == 1
    assert "nothing was fetched" in said
    for part in ("CC BY-NC-SA 4.0", "Not for commercial use", "has not been checked", "Do you accept"):
        assert part in said
    assert said.index("CC BY-NC-SA 4.0") < said.index("Do you accept")
    assert not hub.asked
    assert not installed(comfyui)
    assert run(PERSON, answer="y\n")[0] == 0
    assert installed(comfyui) == [TARGET]


def test_without_a_terminal_nothing_is_accepted_silently(run: Run, hub: Hub, comfyui: Path) -> None:
    code, said = run(PERSON)
    assert code == 1
    assert "CC BY-NC-SA 4.0" in said
    assert "--accept-licence" in said
    assert not hub.asked


def test_an_interrupted_download_goes_on(run: Run, hub: Hub, comfyui: Path) -> None:
    hub.fails = [ConnectionError("the line broke")]
    hub.asked.append("")  # so that it breaks while the file comes, not before
    code, said = run(PERSON, "--accept-licence")
    assert code == 1
    assert "the line broke" in said
    assert "is kept, and the next run goes on from there" in " ".join(said.split())
    assert not (comfyui / "models" / TARGET).exists()
    assert run(PERSON, "--accept-licence")[0] == 0
    assert hub.resumed == [0, len(CONTENT) // 2]
    assert (comfyui / "models" / TARGET).read_bytes() == CONTENT
    assert installed(comfyui) == [TARGET]


@pytest.mark.parametrize("length", [len(CONTENT) // 2, len(CONTENT), len(CONTENT) + 1])
def test_a_partial_file_ends_in_a_whole_one_where_everything_is_sent_again(
    run: Run, hub: Hub, comfyui: Path, length: int
) -> None:
    """As by a proxy that ignores Range, with a client that does not see it."""
    staging = comfyui / "models" / Path(TARGET).parent / download.STAGING / Path(TARGET).name
    staging.mkdir(parents=True)
    part = staging / f"{hashlib.sha256(CONTENT).hexdigest()}.part"
    part.write_bytes((CONTENT + b"x")[:length])
    hub.ignores_range = True
    code, said = run(PERSON, "--accept-licence")
    if length < len(CONTENT):
        assert code == 1 and "the next run begins anew" in " ".join(said.split()), said
        assert not part.exists()
        code, said = run(PERSON, "--accept-licence")
    assert code == 0, said
    assert hub.resumed == ([] if length == len(CONTENT) else [0] if length > len(CONTENT) else [length, 0])
    assert (comfyui / "models" / TARGET).read_bytes() == CONTENT


def test_what_came_of_one_file_outlives_the_download_of_another(run: Run, hub: Hub, comfyui: Path) -> None:
    hub.any_file, hub.fails = True, [ConnectionError("the line broke")]
    hub.asked.append("")
    assert run("ip-adapter-plus", "--accept-licence")[0] == 1
    code, said = run("ip-adapter-plus-face", "--accept-licence")
    assert code == 0, said
    assert run("ip-adapter-plus", "--accept-licence")[0] == 0
    assert hub.resumed == [0, 0, len(CONTENT) // 2]
    assert len(installed(comfyui)) == 2 and not any("download" in name for name in installed(comfyui))


def test_what_came_of_another_version_is_not_continued(run: Run, hub: Hub, comfyui: Path) -> None:
    hub.fails = [ConnectionError("the line broke")]
    hub.asked.append("")
    assert run(PERSON, "--accept-licence")[0] == 1
    hub.content = hub.announced = save({"latents": torch.ones(1, 3, 4)})
    assert run(PERSON, "--accept-licence")[0] == 0
    assert hub.resumed == [0, 0]
    assert (comfyui / "models" / TARGET).read_bytes() == hub.content
    assert installed(comfyui) == [TARGET]


def test_two_downloads_at_once_do_not_mix(hub: Hub, comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, models, refused = find_weights(PERSON), comfyui / "models", []

    def meanwhile(*arguments: Any, **named: Any) -> None:
        with pytest.raises(NestedAttentionError, match="another download of .* is under way"):
            download.download(known, models, print)
        refused.append(True)
        hub.get(*arguments, **named)

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", meanwhile)
    assert download.download(known, models, print).read_bytes() == CONTENT
    assert refused == [True]


def test_what_another_download_has_just_fetched_is_not_fetched_again(
    hub: Hub, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while the second one asks the hub for the file's size."""
    known, models, said = find_weights(PERSON), comfyui / "models", []

    def slowly(url: str) -> Any:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", hub.facts)
        download.download(known, models, print)
        return hub.facts(url)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", slowly)
    assert download.download(known, models, said.append).read_bytes() == CONTENT
    assert hub.resumed == [0] and "Already there" in said[0]
    assert installed(comfyui) == [TARGET]


def test_nothing_is_cleaned_up_without_the_lock(
    hub: Hub, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there afterwards may be another download's."""
    known, models, held, seen = find_weights(PERSON), comfyui / "models", [], []

    class Lock(download.FileLock):  # type: ignore[misc]
        def __enter__(self) -> Any:
            held.append(True)
            return super().__enter__()

        def __exit__(self, *given: Any) -> None:
            held.pop()
            super().__exit__(*given)

    remove = download.shutil.rmtree
    monkeypatch.setattr(download, "FileLock", Lock)
    monkeypatch.setattr(
        download.shutil, "rmtree", lambda *given, **named: (seen.append(bool(held)), remove(*given, **named))
    )
    download.download(known, models, print)
    assert seen == [True] and not (models / Path(TARGET).parent / download.STAGING).exists()


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled"),
        huggingface_hub.errors.LocalEntryNotFoundError("no connection"),
        ConnectionError("blocked"),
        OSError("no space left"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_offline_it_says_what_to_fetch_and_where_to_put_it(
    run: Run, hub: Hub, comfyui: Path, error: Exception
) -> None:
    hub.fails = [error]
    code, said = run(PERSON, "--accept-licence")
    assert code == 1
    said = " ".join(said.split())
    assert (
        "https://huggingface.co/orpatashnik/NestedAttentionEncoder/blob/main/personalization_encoder/"
        "model.safetensors (licence: CC BY-NC-SA 4.0)"
    ) in said
    assert f"save it as {comfyui / 'models' / TARGET}" in said
    assert not installed(comfyui)


@pytest.mark.parametrize(
    ("sent", "announced", "message"),
    [
        (CONTENT[:-1], CONTENT, "has .* bytes; the hub announced"),
        (CONTENT[:-1] + b"x", CONTENT, "has the SHA-256 .*; the hub announced"),
        (b"<!DOCTYPE html>", b"<!DOCTYPE html>", "is no complete safetensors file"),
        (CONTENT[:-4], CONTENT[:-4], "is no complete safetensors file"),
    ],
    ids=["short", "changed", "a page", "broken at the source"],
)
def test_what_is_not_as_announced_is_refused_and_thrown_away(
    hub: Hub, comfyui: Path, sent: bytes, announced: bytes, message: str
) -> None:
    hub.content, hub.announced = sent, announced
    with pytest.raises(NestedAttentionError, match=f"{message}.*Download https://huggingface.co"):
        download.download(find_weights(PERSON), comfyui / "models", print)
    assert not installed(comfyui)
    hub.content = hub.announced = CONTENT
    assert download.download(find_weights(PERSON), comfyui / "models", print).read_bytes() == CONTENT


def test_without_a_hash_of_the_hub_a_file_is_taken_only_when_told_to(
    run: Run, hub: Hub, comfyui: Path
) -> None:
    hub.etag = "abc"  # a git hash, as for small files
    code, said = run(PERSON, "--accept-licence")
    said = " ".join(said.split())
    assert code == 1
    assert "the hub gives no SHA-256 for personalization_encoder/model.safetensors" in said
    assert "if you trust it, add --accept-unverified" in said
    assert not hub.asked
    assert not installed(comfyui)
    code, said = run(PERSON, "--accept-licence", "--accept-unverified")
    assert code == 0
    assert "its content is not verified" in " ".join(said.split())
    assert installed(comfyui) == [TARGET]


def test_a_broken_file_under_the_final_name_is_not_taken_for_installed(
    run: Run, hub: Hub, comfyui: Path
) -> None:
    place = comfyui / "models" / TARGET
    place.parent.mkdir()
    place.write_bytes(CONTENT[:10])
    code, said = run(PERSON, "--accept-licence")
    assert code == 1
    assert "delete it and fetch it again" in " ".join(said.split())


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch, comfyui: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NestedAttentionError, match="pip install huggingface_hub. Or by hand: Download"):
        download.download(find_weights(PERSON), comfyui / "models", print)


def test_without_a_name_all_are_listed_with_what_is_installed(run: Run, hub: Hub, comfyui: Path) -> None:
    run(PERSON, "--accept-licence")
    code, said = run()
    assert code == 0
    for known in known_weights().values():
        assert known.name in said
        assert known.licence in said
    assert f"installed: {comfyui / 'models' / TARGET}" in said
    assert said.count("not installed") == len(known_weights()) - 1
    places = [
        said.index(f"{name}\n") for name in ("ip-adapter-plus", "ip-adapter-plus-face", "ip-adapter", PERSON)
    ]
    assert places == sorted(places)  # first what may be used for anything
    assert len(hub.asked) == 1


def test_names_and_folders_that_do_not_exist(run: Run, hub: Hub, tmp_path: Path) -> None:
    code, said = run("no-such-thing", "--accept-licence")
    assert code == 1
    assert all(name in said for name in known_weights())
    code, said = run(PERSON, "--accept-licence", "--comfyui", str(tmp_path / "gone"), find=False)
    assert code == 1
    assert "expected ComfyUI's folder" in " ".join(said.split())


def test_the_layouts_recognised_are_as_the_list_says(run: Run, hub: Hub, tmp_path: Path) -> None:
    """The list's defaults are what the loader takes a file of that many queries for; nothing reads names."""
    for known in known_weights().values():
        if known.kind != "encoder":
            assert not known.layout
            continue
        sizes = Sizes(queries=known.layout["num_queries"])
        plain = known.layout["features"] == "image_embeds"
        tensors = plain_tensors(sizes=sizes) if plain else encoder_tensors("published", sizes=sizes)
        path = write(tmp_path / known.target, tensors)
        config = load_subject_encoder(path, sites=TINY_SITES).config
        assert {name: getattr(config, name) for name in known.layout} == known.layout


def test_a_file_of_a_known_layout_is_recognised_when_it_comes(
    hub: Hub, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "sdxl_sites", lambda: TINY_SITES)  # SDXL's own would take half a gigabyte
    hub.content = hub.announced = save(encoder_tensors("published", sizes=Sizes(queries=4)))
    said: list[str] = []
    download.download(find_weights(PERSON), comfyui / "models", said.append)
    assert f"Recognised: 4 queries, {len(TINY_SITES)} cross-attention layers" in said


def test_the_list_is_complete_and_consistent() -> None:
    known = known_weights()
    assert {PERSON, "ip-adapter-plus", "ip-adapter-plus-face", "clip-vit-h"} <= set(known)
    for one in known.values():
        assert re.fullmatch("[a-z0-9-]+", one.name)
        assert one.licence_url.startswith("https://")
        assert one.file.endswith(".safetensors") and one.target.endswith(".safetensors")
        assert one.folder in ("nested_attention", "clip_vision")
        assert set(one.needs) <= set(known)
        assert one.size is not None or one.name == PERSON
    assert known[PERSON].licence == "CC BY-NC-SA 4.0"
    assert weights_for("nested_attention", "nested_attention_person.safetensors") == known[PERSON]
    assert weights_for("clip_vision", "nested_attention_person.safetensors") is None
    assert set(NAMING)  # the layouts above are those of the synthetic files


def test_a_damaged_list_says_so(tmp_path: Path) -> None:
    for content in ("", "{}", '{"weights": [{"name": 1}]}', '{"weights": 3}'):
        (tmp_path / "registry.json").write_text(content)
        with pytest.raises(NestedAttentionError, match="install the pack again"):
            registry.known_weights(tmp_path / "registry.json")
