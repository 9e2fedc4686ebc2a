"""Well-known corpora in their exact layout, with a few short recordings each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
CODES = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")
"""Emotions of each IEMOCAP dialogue here; the last two are in none of the four classes."""
INTENTS = (("activate", "lights", "kitchen"), ("change language", "none", "none"))


def write_wav(path: Path, hertz: float = 440.0) -> Path:
    """Write 0.2 s of a sine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE // 5) / RATE), RATE)
    return path


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_esc50(folder: Path) -> Path:
    """Two clips of each of three classes, two of them in ESC-10, in each of 5 folds."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category, esc10 in ((0, "dog", True), (1, "rooster", True), (2, "pig", False)):
            for take in "AB":
                name = f"{fold}-{1000 + fold}-{take}-{target}.wav"
                write_wav(folder / "audio" / name, 300 + 400 * target)
                lines.append(f"{name},{fold},{target},{category},{esc10},{1000 + fold},{take}")
    write_lines(folder / "meta" / "esc50.csv", lines)
    (folder / "meta" / "esc50-human.xlsx").touch()
    return folder


def write_urbansound8k(folder: Path) -> Path:
    """Two clips of each of two classes in each of 10 folds."""
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        for number, name in ((3, "dog_bark"), (8, "siren")):
            for part in range(2):
                file = f"{100 * fold + number}-{number}-0-{part}.wav"
                write_wav(folder / "audio" / f"fold{fold}" / file, 100 * number)
                lines.append(f"{file},{100 * fold + number},0.5,{part + 1}.25,1,{fold},{number},{name}")
        (folder / "audio" / f"fold{fold}" / ".DS_Store").touch()
    write_lines(folder / "metadata" / "UrbanSound8K.csv", lines)
    return folder


def write_speech_commands(folder: Path) -> Path:
    """Two words of four speakers: two train, one valid, one test."""
    for number, word in enumerate(("bed", "yes")):
        for speaker in ("0a2b400e", "0b56bcfe", "ffa76c4a", "fffcabd1"):
            write_wav(folder / word / f"{speaker}_nohash_0.wav", 300 + 400 * number)
    write_wav(folder / "_background_noise_" / "white_noise.wav")
    write_lines(folder / "validation_list.txt", [f"{word}/ffa76c4a_nohash_0.wav" for word in ("bed", "yes")])
    write_lines(folder / "testing_list.txt", [f"{word}/fffcabd1_nohash_0.wav" for word in ("bed", "yes")])
    for name in ("README.md", "LICENSE", ".DS_Store"):
        (folder / name).touch()
    return folder


def write_fluent_speech_commands(folder: Path) -> Path:
    """Two intents; two speakers train, one is valid and one is test."""
    for part, speakers in (("train", ("aLice1", "bOb2")), ("valid", ("cAr3",)), ("test", ("dAn4",))):
        lines = [",path,speakerId,transcription,action,object,location"]
        for speaker in speakers:
            for number, slots in enumerate(INTENTS):
                file = f"wavs/speakers/{speaker}/0a3129c0-4474-11e9-a9a5-{number:012d}.wav"
                write_wav(folder / file, 300 + 400 * number)
                lines.append(f'{len(lines) - 1},{file},{speaker},"Please, do it",{",".join(slots)}')
        write_lines(folder / "data" / f"{part}_data.csv", lines)
    write_lines(folder / "data" / "speaker_demographics.csv", ["speakerId", "aLice1"])
    (folder / "readme.md").touch()
    return folder


def write_iemocap(folder: Path) -> Path:
    """In each of 5 sessions one dialogue, in which both speakers say one utterance of each of ``CODES``."""
    for session in range(1, 6):
        home, dialogue = folder / f"Session{session}", f"Ses{session:02d}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for speaker in "FM":
            for number, emotion in enumerate(CODES):
                utterance = f"{dialogue}_{speaker}{number:03d}"
                write_wav(home / "sentences" / "wav" / dialogue / f"{utterance}.wav", 200 + 100 * number)
                lines += [
                    f"[{number}.2901 - {number + 1}.2357]\t{utterance}\t{emotion}\t[2.5000, 3.0000, 3.5000]",
                    "C-E2:\tNeutral;\t()",
                    "A-E3:\tval 3; act 2; dom  2;\t([no] remark)",
                    "",
                ]
        evaluations = home / "dialog" / "EmoEvaluation"
        write_lines(evaluations / f"{dialogue}.txt", lines)
        # What the archive also holds: files of macOS, and each judge's own folder.
        (evaluations / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07\n[\xff")
        write_lines(evaluations / "Categorical" / f"{dialogue}_e1_cat.txt", [f"{dialogue}_F000 :Neutral; ()"])
    return folder
