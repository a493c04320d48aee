"""Bars, positions and themes; what may follow; and how much a piece hangs together."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.analysis.music import groove_consistency, inconsistency, pitch_classes, pitch_consistency, theme_gaps
from segue.decoding import generate
from segue.decoding.constrain import LegalNext
from segue.errors import SegueError
from segue.kinds.midi import notes_by_track
from segue.kinds.notes import GRID, LOUD, Note
from segue.kinds.remi import STEP, TEMPI, Remi
from segue.models import Stack, StackConfig

REMI = Remi()

notes = st.lists(st.builds(Note, st.integers(0, 200).map(lambda n: n * STEP), st.just(0), st.integers(0, 127),
                           st.integers(1, 64).map(lambda n: n * STEP), st.sampled_from(list(LOUD))), max_size=20,
                 unique_by=lambda note: (note.start, note.pitch))
tempi = st.lists(st.tuples(st.integers(0, 200).map(lambda n: n * STEP), st.sampled_from(list(TEMPI))), max_size=3,
                 unique_by=lambda tempo: tempo[0])
bars = st.lists(st.integers(0, 12), unique=True, max_size=6).map(lambda each: sorted(each[: len(each) // 2 * 2])).map(
    lambda each: list(zip(each[::2], each[1::2])))


@settings(max_examples=80, deadline=None)
@given(melody=notes, piano=notes, tempi=tempi, themes=bars)
def test_pieces_on_the_grid_round_trip(melody: list[Note], piano: list[Note], tempi: list[tuple[int, int]],
                                       themes: list[tuple[int, int]]) -> None:
    items = REMI.spell({"melody": melody, "piano": piano}, tempi, themes)
    parts, speeds, results = REMI.understand(items)
    assert parts["melody"] == sorted(melody) and results == themes and sorted(speeds) == sorted(tempi)
    assert [(note.start, note.pitch, note.length, note.loud) for note in parts["piano"]] == [
        (note.start, note.pitch, note.length, note.loud) for note in sorted(piano)]
    assert REMI.codec.decode(REMI.codec.encode(items)) == items


def test_the_last_tempo_of_a_sixteenth_counts() -> None:
    items = REMI.spell({}, [(STEP, 80), (1, 121), (0, 100), (STEP + 1, 143)])
    assert REMI.understand(items)[1] == [(0, 122), (STEP, 143)]


def test_grammar_errors_name_the_place() -> None:
    for items, place in ((["at0"], 1), (["bar", "at3", "melody60", "loud2"], 4), (["bar", "theme", "at1"], 3),
                         (["theme", "bar", "theme"], 3), (["bar", "theme-end"], 2), (["bar", "at3", "at4"], 3),
                         (["bar", "at3", "tempo80", "at2"], 4), (["bar", "nonsense"], 2)):
        with pytest.raises(SegueError, match=f"item {place},"):
            REMI.understand(items)
    with pytest.raises(SegueError, match="names of small letters"):
        Remi(["bar"])


@pytest.mark.parametrize("mixer", ["attention", "gru"])
def test_untrained_models_generate_playable_pieces(mixer: str) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(REMI.codec.size, 16, [mixer])).eval()
    assert REMI.codec.eos is not None
    prompt = [REMI.codec.eos, *REMI.codec.encode(["theme", "bar", "at3", "melody60"]).tolist()]
    for seed in range(3):
        answer = generate(model, [prompt], 40, "sample", seed=seed, temperature=2.0, eos=REMI.codec.eos,
                          processors=(LegalNext(REMI.legal(prompt[1:])),))[0]
        items = [str(item) for item in REMI.codec.decode([*prompt[1:], *answer.tokens])]
        grammar = REMI.grammar()
        for item in items:
            assert grammar.may(item), (item, items)
            grammar.say(item)


def test_measures_of_a_piece() -> None:
    bar = 4 * GRID
    steady = [Note(at * bar + beat * GRID, 0, pitch, GRID, 20) for at in range(3)
              for beat, pitch in enumerate((60, 64))]
    assert pitch_consistency(steady) == 1 == groove_consistency(steady)
    moved = [*steady[:2], Note(bar + GRID // 4, 0, 61, GRID, 20), Note(bar + 2 * GRID, 0, 76, GRID, 20)]
    assert pitch_consistency(moved) == pytest.approx(0.5)  # E is in both
    assert groove_consistency(moved) == pytest.approx(12 / 16)
    assert pitch_classes(steady).shape == (3, 12) and math.isnan(pitch_consistency([])) and math.isnan(
        groove_consistency(steady[:2]))
    assert theme_gaps([(0, 2), (5, 7), (7, 9)]) == [3, 0]
    with pytest.raises(SegueError, match="in order"):
        theme_gaps([(0, 2), (1, 3)])
    vectors = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert inconsistency(vectors) == 1.0 and inconsistency(vectors, np.array([3.0, 0.0])) == pytest.approx(0.5)


def test_parts_of_a_file_keep_their_time(tmp_path: Path) -> None:
    mido = pytest.importorskip("mido")
    file = mido.MidiFile(type=1, ticks_per_beat=480)
    for name, begin, pitch in (("MELODY", 960, 72), ("PIANO", 480, 48), ("", 0, 0)):
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
        if pitch:
            track += [mido.Message("note_on", note=pitch, velocity=80, time=begin),
                      mido.Message("note_off", note=pitch, time=240)]
        file.tracks.append(track)
    file.save(tmp_path / "song.mid")
    result = notes_by_track(tmp_path / "song.mid")
    assert {name: [(note.start, note.pitch) for note in notes] for name, notes in result.items()} == {
        "MELODY": [(2 * GRID, 72)], "PIANO": [(GRID, 48)]}
    items = REMI.spell({"melody": result["MELODY"], "piano": result["PIANO"]}, themes=[(0, 1)])
    assert items == ["theme", "bar", "at4", "piano48", "length2", "loud20", "at8", "melody72", "length2", "loud20",
                     "theme-end"]
    (tmp_path / "broken.mid").write_bytes(b"MThd no more")
    with pytest.raises(SegueError, match="no MIDI file"):
        notes_by_track(tmp_path / "broken.mid")
