# SPDX-License-Identifier: Apache-2.0
"""What `idlora push` makes of any adapter, what it refuses, and what it gives to the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tiny_pipeline
from idlora.cli import main
from idlora.errors import InputError, OutputError, SettingsError
from idlora.networks.adapter import AdapterWeights, write_adapter
from idlora.training.identity.publish import check_access, last_measures, pack, upload


def written(tmp_path: Path, metadata: Mapping[str, str]) -> Path:
    """An adapter of 2.3 with such metadata."""
    layers = tiny_pipeline.adapter_for(tiny_pipeline.transformer("2.3")).layers
    write_adapter(tmp_path / "other.safetensors", AdapterWeights(layers, metadata))
    return tmp_path / "other.safetensors"


def test_the_card_of_a_file_that_says_nothing_says_so(tmp_path: Path) -> None:
    made = pack(written(tmp_path, {}), "me/it")
    assert made.folder == tmp_path / "hub"
    assert made.files == ("adapter.safetensors", "README.md")
    text = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in text
    for words in ("generation | unknown", "there is no metadata", "Unknown: there is no log", "licence is not stated"):
        assert words in text


@pytest.mark.parametrize("path", ["/srv/private/base", "\\\\server\\private\\base\\", "private/base/"])
def test_paths_in_the_metadata_stay_out_of_the_card(path: str, tmp_path: Path) -> None:
    made = pack(written(tmp_path, {"base": path}), "me/it")
    text = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "private" not in text
    assert "| trained on | base |" in text


def test_measures_after_the_steps_of_the_file_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    log.write_text(
        '{"step": 1, "word_error": 0.5, "loss": 1}\n[1]\n{"step": 2, "validation_loss": 3}\n'
        '{"step": 4, "validation_loss": 2, "speaker_similarity": NaN}\n{"step": 5, "valid',
        encoding="utf-8",
    )
    assert last_measures(log) == {"word_error": (0.5, 1), "validation_loss": (2.0, 4)}
    assert last_measures(log, "3") == {"word_error": (0.5, 1), "validation_loss": (3.0, 2)}
    best = written(tmp_path, {"steps": "3", "speaker_similarity": "0.75"})
    text = (pack(best, "me/it", log=log).folder / "README.md").read_text(encoding="utf-8")
    assert all(f"| {cell} |" in text for cell in ("0.75 | 3", "0.5 | 1", "3 | 2"))


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", "a b/c", "../x", "-a/b", "a/b.git"])
def test_a_repository_that_cannot_be_is_refused_before_anything_is_written(repo: str, tmp_path: Path) -> None:
    file = written(tmp_path, {})
    for refused in (lambda: pack(file, repo), lambda: check_access(repo)):
        with pytest.raises(InputError, match="owner/name"):
            refused()
    assert list(tmp_path.iterdir()) == [file]


def test_faults_of_a_push_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, junk = written(tmp_path, {}), tmp_path / "junk"
    junk.write_bytes(b"junk")
    for arguments, words in (
        ([str(junk), "me/it", "--dry-run"], "cannot be read as safetensors"),
        ([str(file), "it", "--dry-run"], "owner/name"),
        ([str(file), "me/it", "--dry-run", "--log", str(tmp_path / "absent")], "log.jsonl"),
        ([str(file), "me/it", "--dry-run", "--log", str(file)], "it is no text"),
        ([str(file), "me/it", "--dry-run", "--folder", str(junk)], "choose another --folder"),
        ([str(file), "me/it"], "HF_HUB_OFFLINE"),
    ):
        assert main(["push", *arguments]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert words in message
    (tmp_path / "config.yaml").write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError, match="not YAML"):
        pack(file, "me/it")
    assert not (tmp_path / "hub").exists()


def test_without_a_token_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="hf auth login"):
        check_access("me/it")


class Hub:
    """A hub that keeps what it is given."""

    private = True
    fault: Exception | None = None
    given: dict[str, Any]

    def __init__(self) -> None:
        type(self).given = {}

    def create_repo(self, repo: str, **options: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.given["repo"] = repo, options

    def model_info(self, _repo: str) -> Any:
        return type(self)

    def upload_folder(self, **options: Any) -> None:
        self.given["files"] = options


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    made = type("Hub", (Hub,), {})
    monkeypatch.setattr("huggingface_hub.HfApi", made)
    return made


def test_only_what_was_packed_is_uploaded(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "diary.txt").touch()
    made = pack(written(tmp_path, {}), "me/it")
    assert upload(made, private=True) == "https://huggingface.co/me/it"
    assert hub.given["repo"] == ("me/it", {"private": True, "exist_ok": True})
    assert hub.given["files"]["allow_patterns"] == ["adapter.safetensors", "README.md"]
    assert hub.given["files"]["folder_path"] == made.folder
    hub.private = False
    with pytest.raises(OutputError, match="public"):
        upload(made, private=True)
    assert "files" not in hub.given


def test_a_hub_that_refuses_is_one_fault(hub: type[Hub], tmp_path: Path) -> None:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    made = pack(written(tmp_path, {}), "me/it")
    unreachable = HfHubHTTPError.__bases__[0]("no route\nto host")
    for fault in (unreachable, LocalTokenNotFoundError("no token"), OfflineModeIsEnabled("offline"), OSError("full")):
        hub.fault = fault
        with pytest.raises(OutputError, match=r"cannot upload to me/it: .*; check the network") as caught:
            upload(made, private=False)
        assert "\n" not in str(caught.value)
