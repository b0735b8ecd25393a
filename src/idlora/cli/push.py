# SPDX-License-Identifier: Apache-2.0
"""`idlora push`: an adapter with its model card onto the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    adapter: Annotated[Path, typer.Argument(help="File of the adapter; configuration and log lie beside it.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; it is made if there is none.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, tell what would happen, stop.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the files are put; `hub` beside the adapter.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Only its owner sees the repository.")] = False,
    log: Annotated[Path | None, typer.Option(help="The run's log.jsonl, if it lies elsewhere.")] = None,
) -> None:
    """Publish an adapter: its file, a model card made of what it says, and the run's configuration without paths."""
    from idlora.training.identity.publish import check_access, pack, upload

    if not dry_run:
        check_access(repo)
    parcel = pack(adapter, repo, folder, log)
    for name in parcel.files:
        path = parcel.folder / name
        print(f"{path} ({path.stat().st_size:,} bytes)")
    if dry_run:
        made = f"made {'private' if private else 'public'} if it is new"
        print(f"nothing was uploaded; without --dry-run these files go to {parcel.url}, {made}")
    else:
        print(f"uploaded to {upload(parcel, private=private)}")
