# SPDX-License-Identifier: Apache-2.0
"""Raw recordings by their own clock: what files hold, odd ones, cuts, speech, faces and lips."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from idlora.cli import main
from idlora.data.media.timeline import frames_between, probe, read_mono
from idlora.data.world.recordings import (
    DUB,
    LISTENER,
    SCENERY,
    TALK,
    TWO,
    Recording,
    Shot,
    draw_recordings,
    render_heard,
    render_seen,
)  # fmt: skip
from idlora.errors import InputError, MediaError, SettingsError
from idlora.mining import active, faces, quality
from idlora.mining.finders.base import Seen, finder_named
from idlora.mining.finders.cascade import CascadeFinder
from idlora.mining.pitch import pitch_of
from idlora.mining.scenes import cuts_of
from idlora.mining.settings import FaceRules, settings_of
from idlora.mining.sources import Source, find_sources, with_rights
from idlora.mining.speech import spoken_spans
from mined import recordings, rewrite, write_corpus
from signals import gradient_frames, tone

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RULES = FaceRules(finder="world")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("files") / "videos")


def frames_of(path: Path, start: float = 0.0, end: float = np.inf) -> np.ndarray:
    return np.stack(list(frames_between(path, 25.0, start, end))).astype(float)


def test_a_turned_file_stands_upright_and_a_phones_file_keeps_step_with_its_sound(corpus: Path) -> None:
    first, second = frames_of(corpus / "0000" / "0000-1.mp4"), frames_of(corpus / "0000" / "turned.mp4")
    assert (probe(corpus / "0000" / "turned.mp4").rotation, first.shape) == (90, second.shape)
    assert np.abs(first - second).mean() < 3 < np.abs(first - second[:, ::-1]).mean()
    told = probe(corpus / "0003" / "phone.mp4")
    assert (told.variable, probe(corpus / "0003" / "0003-0.mp4").variable) == (True, False)
    whole, lacking = frames_of(corpus / "0003" / "0003-0.mp4"), frames_of(corpus / "0003" / "phone.mp4")
    assert len(whole) == len(lacking) == round(told.seconds * 25)
    kept = np.arange(len(whole)) % 7 != 3
    assert np.abs(whole - lacking)[kept].mean(axis=(1, 2, 3)).max() < 4  # the frame of its time, not of its number


def test_a_span_is_the_same_as_the_part_of_the_whole(corpus: Path) -> None:
    path = corpus / "0000" / "0000-0.mp4"
    whole = frames_of(path)
    assert np.array_equal(frames_of(path, start=2.4, end=3.39), whole[60:85])
    sound, part = read_mono(path), read_mono(path, start=2.5, end=3.0)
    assert len(part) == 8000
    assert np.corrcoef(part[200:-200], sound[40_000:48_000][200:-200])[0, 1] > 0.999
    with pytest.raises(MediaError, match="no audio track"):
        read_mono(corpus / "0000" / "mute.mp4")


def shots(*kinds: str) -> Recording:
    """A file whose cuts all show another picture."""
    words = (("river", "garden", "coffee"),)
    given = [
        Shot(kind, -1 if kind == SCENERY else 0, () if kind == SCENERY else words, "calm", 50 + number, "hall")
        for number, kind in enumerate(kinds)
    ]
    return Recording("shots", "quiet room", tuple(given), 5)


def test_cuts_are_found_to_the_frame() -> None:
    recording = shots(TALK, SCENERY, TALK, LISTENER)
    _, dry = render_heard(recording)
    lengths = [shot.num_frames for shot in recording.shots]
    cuts, count = cuts_of(iter(render_seen(recording, dry)), 25.0)
    assert (cuts, count) == (np.cumsum(lengths)[:-1].tolist(), sum(lengths))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(TALK, ""), (LISTENER, active.STILL), (DUB, active.APART), (SCENERY, active.UNSEEN), (TWO, active.UNSEEN)],
)
def test_who_is_seen_is_told_from_who_is_heard(kind: str, reason: str) -> None:
    recording = shots(kind)
    heard = render_heard(shots(TALK) if kind == SCENERY else recording)[0]
    seen = finder_named("world").find(render_seen(recording, render_heard(recording)[1]))
    tracks, other = faces.tracks(seen, RULES)
    told = [
        {
            "track": "t",
            "start": t.first / 25,
            "end": t.last / 25,
            "opening": [f[0].opening for f in seen[t.first : t.last]],
        }
        for t in tracks
    ]
    energy = active.energy_of(heard, 25.0)
    found = [active._judged(span, told, energy, 0.0, RULES) for span in active.joined(spoken_spans(heard))]
    assert found
    assert all([why for why, _ in reasons] == ([reason] if reason else []) for _, reasons in found)
    assert {state for state, _ in other} == {SCENERY: {faces.NONE}, TWO: {faces.SEVERAL}}.get(kind, set())


def test_tracks_forgive_a_missed_frame_and_not_another_face() -> None:
    face, beside, small = Seen(0.2, 0.2, 0.4, 0.5, 0.1), Seen(0.6, 0.2, 0.4, 0.5, 0.1), Seen(0.2, 0.2, 0.1, 0.1, 0.1)
    seen = [[face]] * 40 + [[]] * 3 + [[face]] * 40 + [[face, beside]] * 30 + [[beside]] * 40 + [[small]] * 30
    tracks, other = faces.tracks(seen, RULES)
    assert [(track.first, track.last) for track in tracks] == [(0, 83), (113, 153)]
    assert [(reason, track.first) for reason, track in other] == [(faces.SEVERAL, 83), (faces.SMALL, 153)]
    tracks, _ = faces.tracks([[face]] * 40 + [[beside]] * 40, RULES)
    assert [(track.first, track.last) for track in tracks] == [(0, 40), (40, 80)]
    assert faces.state_of([Seen(0.2, 0.2, 0.4, 0.5, 0.1, turned=0.9)], RULES) == faces.TURNED


def test_the_cascade_sees_a_face_and_its_lips() -> None:
    recording = draw_recordings(2)[4]  # whose drawn face the cascade takes for one; it does not take all
    recording = replace(recording, shots=recording.shots[:1])
    frames = render_seen(recording, render_heard(recording)[1])
    cascade, world = CascadeFinder().find(frames), finder_named("world").find(frames)
    both = [place for place in range(len(frames)) if cascade[place] and world[place]]
    assert len(both) > 0.9 * len(frames)
    assert all(cascade[place][0].overlap(world[place][0]) > 0.3 for place in both)
    opened, truly = (np.array([found[place][0].opening for place in both]) for found in (cascade, world))
    assert np.corrcoef(opened, truly)[0, 1] > 0.5
    assert CascadeFinder().find(gradient_frames(5, 96, 96)) == [[]] * 5


def test_quality_tells_music_bars_cuts_clipping_and_whispers() -> None:
    recording = shots(TALK, TALK)
    sound, dry = render_heard(recording)
    frames = render_seen(recording, dry)
    notes = sum(0.05 * tone(len(sound) / 16_000, pitch)[0][: len(sound)] for pitch in (220.0, 277.2, 329.6))
    assert quality.music(sound) < 0.1
    assert quality.music(sound + notes) > 0.5
    assert quality.jump(frames[:60]) < 10 < quality.jump(frames[30:130])
    framed = np.pad(frames[:20], ((0, 0), (16, 16), (0, 0), (0, 0)))
    assert quality.black_bars(frames[:20]) == 0
    assert quality.black_bars(framed) == pytest.approx(32 / 128)
    blurred = np.repeat(np.repeat(frames[:9, ::12, ::12], 12, axis=1), 12, axis=2)
    face = (0.24, 0.16, 0.52, 0.56)
    assert quality.sharpness(blurred, face) < quality.sharpness(frames[:9], face)
    spans = spoken_spans(sound)
    noisy = sound + 0.05 * np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    assert quality.snr(sound, spans) > 15 > quality.snr(noisy, spans)
    voiced = sum(tone(1.0, 147.0 * order, gain=0.1)[0] for order in range(1, 12))
    rumble = 0.3 * tone(1.0, 60.0)[0]
    assert pitch_of(voiced + rumble).hertz == pytest.approx(147, rel=0.01)
    assert pitch_of(np.random.default_rng(0).standard_normal(16_000).astype(np.float32)).voiced < 0.1
    measured = {"jump": 0, "black": 0, "sharp": 1, "clipped": 0, "voiced": 0.05, "music": 0.9, "snr": 30}
    assert quality.fault_of(measured, settings_of({}).quality)[0] == quality.WHISPERED  # type: ignore[index]


def test_the_mesh_is_read_by_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType, SimpleNamespace

    points = [SimpleNamespace(x=0.5, y=0.5) for _ in range(478)]
    for place, x, y in (
        (10, 0.5, 0.2),
        (152, 0.5, 0.8),
        (13, 0.5, 0.6),
        (14, 0.5, 0.63),
        (234, 0.3, 0.5),
        (454, 0.7, 0.5),
        (1, 0.6, 0.5),
    ):
        points[place] = SimpleNamespace(x=x, y=y)

    class FaceMesh:
        def __init__(self, **_: object) -> None:
            self.seen = 0

        def __enter__(self) -> FaceMesh:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def process(self, _: np.ndarray) -> SimpleNamespace:
            self.seen += 1
            return SimpleNamespace(multi_face_landmarks=[SimpleNamespace(landmark=points)] if self.seen > 1 else None)

    module = ModuleType("face_mesh")
    module.FaceMesh = FaceMesh  # type: ignore[attr-defined]
    package = ModuleType("mediapipe.python.solutions")
    package.face_mesh = module  # type: ignore[attr-defined]
    for name in ("mediapipe", "mediapipe.python"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions", package)
    none, faces_seen = finder_named("mesh").find(gradient_frames(2))
    assert none == []
    face = faces_seen[0]
    assert (face.left, face.top, face.width, face.height) == pytest.approx((0.3, 0.2, 0.4, 0.6))
    assert face.opening == pytest.approx(0.03 / 0.6)
    assert face.turned == pytest.approx(1 - 0.1 / 0.3)


def test_layouts_of_others_are_read(tmp_path: Path) -> None:
    for name in (
        "id1/video1/00001.mp4",
        "id1/video1/00002.mp4",
        "id2/video9/00001.mp4",
        "abc.mp4",
        "abc_1.mp4",
        "t-1.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    deep = find_sources(tmp_path, "voxceleb")
    assert [(each.label, Path(each.recording).name) for each in deep] == [("id1", "video1")] * 2 + [("id2", "video9")]
    assert {each.label for each in find_sources(tmp_path, "speakers")} == {"id1", "id2"}
    clip = {"ytb_id": "abc", "duration": {"start_sec": 81.6, "end_sec": 86.2}, "bbox": {}}
    listed = tmp_path / "celebvhq_info.json"
    listed.write_text(
        json.dumps({"meta_info": {}, "clips": {"abc_0": clip, "abc_1": clip, "gone_0": {**clip, "ytb_id": "gone"}}})
    )
    found = find_sources(tmp_path, "celebv-hq", listed)
    assert [(each.path.name, each.start, each.recording) for each in found] == [
        ("abc.mp4", 81.6, "abc"),
        ("abc_1.mp4", 0.0, "abc"),
    ]
    info = {"Person ID": "597", "Video Link": "https://www.youtube.com/watch?v=abc"}
    listed.write_text(
        json.dumps(
            [
                {"id": "t-1", "start-time": 0.1, "end-time": 5.1, "info": info},
                {"id": "u", "start-time": 3, "end-time": 9, "info": info},
            ]
        )
    )
    found = find_sources(tmp_path, "talkvid", listed)
    assert [(each.path.name, each.start, each.label) for each in found] == [
        ("abc.mp4", 3.0, "person-597"),
        ("t-1.mp4", 0.0, "person-597"),
    ]
    paths = tmp_path / "list.txt"
    paths.write_text('abc.mp4\n{"path": "t-1.mp4", "consent": "given", "end": 9.5}\n')
    assert [(each.consent, each.end) for each in find_sources(paths)] == [("unknown", np.inf), ("given", 9.5)]
    for wrong, layout in ((paths, "talkvid"), (tmp_path, "folders"), (tmp_path / "absent", "auto")):
        with pytest.raises(InputError):
            find_sources(wrong, layout)
    paths.write_text('{"path": "abc.mp4", "licens": "x"}\n')
    with pytest.raises(InputError, match="line 1"):
        find_sources(paths)


def test_rights_are_told_by_name_or_pattern(tmp_path: Path) -> None:
    table = tmp_path / "rights.csv"
    table.write_text("path,source,licence,consent\n*.mp4,ours,CC0,unknown\nanna/*.mp4,,,given\n")
    sources = [Source(Path("videos/anna/1.mp4")), Source(Path("videos/ben/1.mp4"))]
    told = [(each.licence, each.consent) for each in with_rights(sources, table)]
    assert told == [("CC0", "given"), ("CC0", "unknown")]
    table.write_text("file\nx\n")
    with pytest.raises(InputError, match="no column"):
        with_rights(sources, table)


@pytest.mark.parametrize("within", [True, False])
def test_the_mesh_is_chosen_where_mediapipe_has_it(
    within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later mediapipes have neither the mesh nor its model."""
    (tmp_path / "mediapipe/python/solutions").mkdir(parents=True)
    (tmp_path / "mediapipe/__init__.py").touch()
    if within:
        (tmp_path / "mediapipe/python/solutions/face_mesh.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert type(finder_named("auto")).__name__ == ("MeshFinder" if within else "CascadeFinder")
    assert "mediapipe" not in sys.modules


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cv2", "scenedetect", "mediapipe.python.solutions", "mediapipe"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match="OpenCV"):
        CascadeFinder().find(gradient_frames(1))
    with pytest.raises(SettingsError, match="PySceneDetect"):
        cuts_of([], 25.0)
    with pytest.raises(SettingsError, match="mediapipe"):
        finder_named("mesh").find(gradient_frames(1))
    with pytest.raises(SettingsError, match="did you mean"):
        finder_named("cascad")


def test_recordings_of_the_world_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "world",
        "recordings",
        str(tmp_path),
        "--speakers",
        "2",
        "--files",
        "1",
        "--conversations",
        "1",
        "--workers",
        "1",
    ]
    assert main(command) == 0
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert [each["file"] for each in truth] == ["0000-0.mp4", "0001-0.mp4", "two-0000.mp4"]
    assert all((tmp_path / each["file"]).is_file() for each in truth)
    states = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")} == states
    assert main(["world", "recordings", str(tmp_path), "--speakers", "1"]) == 2
    capsys.readouterr()
    assert len({each.name for each in recordings()}) == 4
    rewrite(tmp_path / "0000-0.mp4", tmp_path / "turned.mp4", rotation=180)
    assert probe(tmp_path / "turned.mp4").rotation == 180
