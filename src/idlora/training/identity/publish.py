# SPDX-License-Identifier: Apache-2.0
"""An adapter on the hub: its file, a model card made of what the file says, and the configuration of its run.

No path of the machine that trained it goes into any of them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from idlora.errors import InputError, OutputError, first_line
from idlora.files import replacing, write_text
from idlora.networks.adapter_info import MEASURES, describe_adapter
from idlora.training.identity.config import read_yaml
from idlora.training.identity.engine import FINAL_NAME
from idlora.training.identity.hub_card import Measures, model_card, without_paths
from idlora.training.identity.journal import LOG_NAME
from idlora.training.identity.run import CONFIG_NAME

CARD_NAME = "README.md"


@dataclass(frozen=True)
class Parcel:
    """What goes to the hub.

    Attributes:
        repo: `owner/name`.
        folder: where the files lie; others in it stay here.
        files: their names.
    """

    repo: str
    folder: Path
    files: tuple[str, ...]

    @property
    def url(self) -> str:
        """Of the repository."""
        return f"https://huggingface.co/{self.repo}"


def check_access(repo: str) -> None:
    """Refuse an upload that cannot succeed, before any work.

    Raises:
        InputError: the repository cannot be called so, or there is no token.
        OutputError: the hub's client is set offline.
    """
    from huggingface_hub import constants, get_token

    _check_repo(repo)
    if constants.HF_HUB_OFFLINE:
        raise OutputError(f"nothing can be uploaded to {repo} while HF_HUB_OFFLINE is set; unset it, or say --dry-run")
    if get_token() is None:
        raise InputError(
            f"there is no token to upload to {repo} with; log in with `hf auth login` or set HF_TOKEN to a token that "
            "may write, or say --dry-run"
        )


def pack(adapter: Path, repo: str, folder: Path | None = None, log: Path | None = None) -> Parcel:
    """Make the folder of an adapter's repository.

    Args:
        adapter: its file; the run's configuration and log are those beside it.
        repo: `owner/name` on the hub.
        folder: where to; `hub` beside the adapter by default. What is in it stays, but for files of the same names.
        log: of the run, if it lies elsewhere.

    Raises:
        WeightsError: the file is no adapter.
        InputError: the repository cannot be called so, or the log cannot be read.
        SettingsError: the configuration beside the adapter is damaged.
        OutputError: the folder cannot be written.
    """
    _check_repo(repo)
    told = describe_adapter(adapter)
    beside = adapter.parent / LOG_NAME
    log = beside if log is None and beside.is_file() else log
    metadata = told["metadata"]
    measures = {**_told_measures(metadata), **({} if log is None else last_measures(log, metadata.get("steps", "")))}
    contents = {CARD_NAME: model_card(told, repo, measures, logged=log is not None)}
    if (adapter.parent / CONFIG_NAME).is_file():
        contents[CONFIG_NAME] = _config_text(adapter.parent / CONFIG_NAME)
    folder = adapter.parent / "hub" if folder is None else folder
    _make(folder)
    if not _same(adapter, folder / FINAL_NAME):
        with replacing(folder / FINAL_NAME) as temporary:
            shutil.copyfile(adapter, temporary)
    for name, text in contents.items():
        write_text(folder / name, text)
    return Parcel(repo, folder, (FINAL_NAME, *contents))


def upload(parcel: Parcel, *, private: bool) -> str:
    """Put a parcel into its repository, which is made if there is none; returns its address.

    The token is the hub's own matter (`hf auth login`, HF_TOKEN).

    Raises:
        OutputError: the hub refuses or cannot be reached, or a repository that is to be private is not.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's client has changed its HTTP library, whose errors share no other base.
    unreachable: type[BaseException] = HfHubHTTPError.__bases__[0]
    api = HfApi()
    try:
        api.create_repo(parcel.repo, private=private or None, exist_ok=True)
        if private and not api.model_info(parcel.repo).private:
            raise OutputError(
                f"{parcel.repo} is there already, and public; make it private on the hub, or choose a name"
            )
        message = "An identity adapter by idlora"
        names = list(parcel.files)
        api.upload_folder(repo_id=parcel.repo, folder_path=parcel.folder, allow_patterns=names, commit_message=message)
    except OutputError:
        raise
    except (unreachable, OSError) as error:
        raise OutputError(
            f"cannot upload to {parcel.repo}: {first_line(error)}; check the network, the name and that the token may "
            f"write there; {parcel.folder} is ready to be pushed again"
        ) from error
    return parcel.url


def last_measures(log: Path, steps: str = "") -> Measures:
    """The last value of every measure in a run's log, with its step; later ones than the adapter's do not count.

    Args:
        log: `log.jsonl` of the run; a line that was cut short when the run was killed is passed over.
        steps: how many the adapter was trained for, if it says so.

    Raises:
        InputError: the log cannot be read.
    """
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"cannot read the log {log}: {reason}; give the {LOG_NAME} of the adapter's run") from error
    last = int(steps) if steps.isdecimal() else math.inf
    found: dict[str, tuple[float, int]] = {}
    for line in lines:
        values = _line(line)
        if values.get("step", math.inf) <= last:
            found |= {name: (float(values[name]), int(values["step"])) for name in MEASURES if name in values}
    return found


def _told_measures(metadata: Mapping[str, str]) -> Measures:
    """The measure that a file kept as the best one names."""
    found = {}
    for name in MEASURES:
        try:
            found[name] = (float(metadata[name]), int(metadata["steps"]))
        except (KeyError, ValueError):
            continue
    return found


def _line(text: str) -> Mapping[str, float]:
    """The finite numbers of a line."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(values, Mapping):
        return {}
    return {name: each for name, each in values.items() if isinstance(each, int | float) and math.isfinite(each)}


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} cannot be the name of a repository: {first_line(error)}; say owner/name") from error
    if "/" not in repo:
        raise InputError(f"{repo!r} does not say whose repository it is; say owner/name")


def _config_text(path: Path) -> str:
    import yaml

    text: str = yaml.safe_dump(without_paths(dict(read_yaml(path))), sort_keys=False)
    return f"# As it was trained; of folders and files only the names are left.\n{text}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another --folder") from error


def _same(first: Path, second: Path) -> bool:
    return second.exists() and first.samefile(second)
