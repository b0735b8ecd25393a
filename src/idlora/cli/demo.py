# SPDX-License-Identifier: Apache-2.0
"""`idlora demo`: the packaged portrait and voice become clips with and without the reference, and a picture of both."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idlora.cli.generate import quieten
from idlora.cli.world import make_folder
from idlora.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from idlora.data.media import Voice
    from idlora.pipeline import IDLoraPipeline, Result, Settings
    from idlora.pipeline.overview import Panel

PROMPT = "[VISUAL] a person in a quiet room [SPEECH] river garden coffee [SOUNDS] a calm voice, a quiet room"
ASSETS = "data/world/assets"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; it is made if missing.")] = Path("demo"),
    prompt: Annotated[str, typer.Option("--prompt", help="What is seen, said and heard.")] = PROMPT,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same clips.")] = None,
) -> None:
    """A portrait and a voice that ship with the package become result.mp4; beside it the same without the reference."""
    from idlora.data.media import read_voice, write_png
    from idlora.pipeline import IDLoraPipeline
    from idlora.pipeline.overview import overview

    make_folder(out)
    quieten()
    pipe = IDLoraPipeline.from_pretrained("miniature")
    settings = pipe.card.defaults if seed is None else replace(pipe.card.defaults, seed=seed)
    with packaged() as assets:
        voice = read_voice(assets / "demo_voice.flac")
        portrait = assets / "demo_portrait.png"
        result = _clip(pipe, (prompt, portrait, assets / "demo_voice.flac"), settings, "with the voice")
        plain = _clip(pipe, (prompt, portrait, None), settings, "without the voice")
    result.save(out / "result.mp4")
    plain.save(out / "no_reference.mp4")
    write_png(out / "overview.png", overview(_panels(voice, result, plain)))
    for name in ("result.mp4", "no_reference.mp4", "overview.png"):
        print(out / name)
    print(_similarity(voice, result, plain))


def packaged() -> AbstractContextManager[Path]:
    """The folder of the portrait and the voice that ship with the package."""
    return as_file(files("idlora").joinpath(ASSETS))


def _clip(pipe: IDLoraPipeline, inputs: tuple[str, Path, Path | None], settings: Settings, title: str) -> Result:
    from idlora.pipeline import progress_bar

    prompt, portrait, voice = inputs
    with progress_bar(title) as callback:
        return pipe(prompt, image=portrait, voice=voice, settings=settings, callback=callback)


def _panels(voice: Voice, result: Result, plain: Result) -> list[Panel]:
    from idlora.pipeline.overview import Panel

    return [
        Panel("the voice", voice.samples, voice.sample_rate),
        Panel("with its reference", result.audio, result.sample_rate, result.video),
        Panel("without a reference", plain.audio, plain.sample_rate, plain.video),
    ]


def _similarity(voice: Voice, result: Result, plain: Result) -> str:
    """The line that the demo ends with."""
    try:
        from idlora.evaluation.judges import SpeakerJudge

        judge = SpeakerJudge()
        scores = [
            judge.similarity(_mono(voice.samples), voice.sample_rate, _mono(clip.audio), clip.sample_rate)
            for clip in (result, plain)
        ]
    except ImportError:
        return "speaker similarity: not measured; it needs the extra idlora[eval] and Resemblyzer (see the Makefile)"
    except InputError as error:
        return f"speaker similarity: not measured; {error}"
    return f"speaker similarity to the voice: {scores[0]:.3f} with the reference, {scores[1]:.3f} without"


def _mono(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = samples.mean(axis=0)
    return mean
