"""What nano-whisper hears: synthesised phrases in twelve languages, and real transcribed speech."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from mambavox.asr.text import normalize_text
from mambavox.data import read_audio
from mambavox.data.synth import colored_noise, mix_at_snr, synthesizer, variants
from mambavox.errors import ConfigError
from mambavox.units.phones import segments_of

RATE = 16_000
SEEN = {
    "ar": "ar",
    "de": "de",
    "en": "en-us",
    "es": "es",
    "fr": "fr-fr",
    "hi": "hi",
    "id": "id",
    "it": "it",
    "nl": "nl",
    "pl": "pl",
    "ru": "ru",
    "sv": "sv",
    "zh": None,
}
"""Languages that it learns, and espeak-ng's voice; Chinese characters are read badly, so zh is real speech alone."""
UNSEEN = {"ca": "ca", "cs": "cs", "pt": "pt", "sw": "sw", "tr": "tr"}
"""Languages that are kept for adaptation."""
SENTENCES = {
    "id": """anak itu pergi ke sekolah setiap hari
saya makan nasi dan ikan di rumah
ibu memasak air panas di dapur
kami tinggal di kota besar dekat laut
mereka membaca buku baru di bawah pohon
hujan turun sepanjang malam di desa kecil
bapak bekerja di kebun sejak pagi
kucing hitam tidur di atas kursi
tolong buka pintu dan tutup jendela
burung terbang tinggi di langit biru
dia membeli buah segar dari pasar
gunung tinggi terlihat jelas dari jalan
guru menulis kata sulit di papan tulis
adik bermain bola bersama teman lama
kapal berlayar melewati pulau kecil
besok kita akan berangkat dengan kereta
siapa nama orang yang berdiri di sana
berapa harga baju merah dan celana putih
matahari terbit di timur dan terbenam di barat
rumah kayu tua itu sangat dingin
lampu jalan menyala ketika hari gelap
nenek bercerita tentang masa lalu
dokter memberi obat kepada orang sakit
sungai mengalir pelan menuju danau
petani menanam padi pada musim hujan
jangan lupa membawa uang dan kunci
musik lembut terdengar dari kamar sebelah
kopi pahit dan teh manis ada di meja
angin kencang membuat daun kering jatuh
mobil cepat berhenti di depan toko roti""",
}
"""Sentences of a language of which there is no text."""
REAL = ("multilingual_asr", "librispeech_subset")
"""Folders of real transcribed speech."""
ARABIC = {
    "zero": "صفر",
    "one": "واحد",
    "two": "اثنان",
    "three": "ثلاثة",
    "four": "أربعة",
    "five": "خمسة",
    "six": "ستة",
    "seven": "سبعة",
    "eight": "ثمانية",
    "nine": "تسعة",
    "yes": "نعم",
    "no": "لا",
    "right": "يمين",
    "left": "يسار",
}
"""Words of arabic_speech_commands by their labels, as far as the word is beyond doubt."""
MOST_WORDS = 9


@dataclass
class Texts:
    """Phrases of some languages.

    They are pieces of sentences, words in any order and invented words, so that the spelling of sounds is learned and
    no text by heart.

    Attributes:
        sentences: normalised sentences by language.
        words: all words of each language.
        letters: what follows two letters in the words of each language, as often as it does; a space ends a word.
    """

    sentences: dict[str, list[str]]
    words: dict[str, list[str]] = field(init=False)
    letters: dict[str, dict[str, list[str]]] = field(init=False)

    def __post_init__(self) -> None:
        self.words = {
            language: sorted({word for sentence in sentences for word in sentence.split()})
            for language, sentences in self.sentences.items()
        }
        self.letters = {}
        for language, words in self.words.items():
            following = self.letters.setdefault(language, {})
            for word in words:
                padded = f"  {word} "
                for place in range(len(word) + 1):
                    following.setdefault(padded[place : place + 2], []).append(padded[place + 2])

    @classmethod
    def read(cls, folder: Path, languages: tuple[str, ...], *, held_out: bool = False) -> "Texts":
        """Sentences of ``<language>.tsv`` files or of ``SENTENCES``; every fifth is held out."""
        found = {}
        for language in languages:
            if language in SENTENCES:
                rows = SENTENCES[language].splitlines()
            else:
                with (folder / f"{language}.tsv").open(encoding="utf-8", newline="") as file:
                    rows = [row[-1] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
            kept = [text for index, text in enumerate(rows) if (index % 5 == 4) == held_out]
            found[language] = [text for text in (normalize_text(row, language) for row in kept) if text]
        return cls(found)

    def phrase(self, language: str, generator: np.random.Generator, most_words: int = MOST_WORDS) -> str:
        """A piece of a sentence (four times in ten), words in any order (three), or invented words (three)."""
        count = int(generator.integers(1, most_words + 1))
        kind = generator.random()
        if kind < 0.3:
            return " ".join(self.invent(language, generator) for _ in range(count))
        if kind < 0.6:
            words = self.words[language]
            return " ".join(words[i] for i in generator.integers(0, len(words), count))
        words = self.sentences[language][int(generator.integers(len(self.sentences[language])))].split()
        start = int(generator.integers(0, max(len(words) - count, 0) + 1))
        return " ".join(words[start : start + count])

    def invent(self, language: str, generator: np.random.Generator) -> str:
        """A word that is spelled like those of the language, of at most 14 letters."""
        following, word = self.letters[language], "  "
        while len(word) < 16:
            letters = following[word[-2:]]
            letter = letters[int(generator.integers(len(letters)))]
            if letter == " ":
                break
            word += letter
        return word[2:]


@dataclass(frozen=True)
class Spoken:
    """One recording with its transcript.

    Attributes:
        waveform: ``(samples,)`` at 16 kHz.
        text: normalised transcript.
        language: its code.
        phones: symbol, start and end in seconds of what is heard, silence too; empty where that is not known.
        letters: a place in the text and the second at which it is heard, in order; between two, time goes evenly.
    """

    waveform: NDArray[np.float32]
    text: str
    language: str
    phones: tuple[tuple[str, float, float], ...] = ()
    letters: tuple[tuple[int, float], ...] = ()

    def trimmed(self) -> "Spoken":
        """Without the silence before and behind; all times are those of what is left."""
        loud = np.flatnonzero(np.abs(self.waveform) > 0.005)
        if not loud.size:
            return replace(self, waveform=self.waveform[:0], phones=(), letters=())
        first, end = int(loud[0]), int(loud[-1]) + 1
        seconds, moved = (end - first) / RATE, self.moved(-first / RATE)
        letters = tuple((place, min(max(time, 0.0), seconds)) for place, time in moved.letters)
        return replace(moved, waveform=self.waveform[first:end], letters=letters)

    def moved(self, shift: float, factor: float = 1.0) -> "Spoken":
        """With phones and letters some seconds later, and then at so many times their time."""
        phones = tuple((name, factor * (start + shift), factor * (end + shift)) for name, start, end in self.phones)
        letters = tuple((place, factor * (time + shift)) for place, time in self.letters)
        return replace(self, phones=phones, letters=letters)


def real_speech(data: Path, split: str, seconds: float) -> list[tuple[Path, str, str]]:
    """Path, transcript and language of the real recordings of a part that are no longer than some seconds."""
    found = []
    for corpus in REAL:
        lines = (data / corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        for index, row in enumerate(json.loads(line) for line in lines):
            # A corpus without parts is divided by number.
            part = row.get("split", "test" if index % 10 == 9 else "train")
            if part == split and row["duration"] <= seconds and row["language"] in SEEN:
                text = normalize_text(row["text"], row["language"])
                found.append((data / corpus / row["path"], text, row["language"]))
    words = data / "arabic_speech_commands"
    for row in map(json.loads, (words / "manifest.jsonl").read_text(encoding="utf-8").splitlines()):
        if row["split"] == split and row["label"] in ARABIC:
            found.append((words / row["path"], normalize_text(ARABIC[row["label"]], "ar"), "ar"))
    return found


class Speech(IterableDataset[Spoken]):
    """Endless speech: a synthesised phrase, or with some probability a real recording, at any level.

    Args:
        texts: what is said in synthesised speech.
        voices: espeak-ng's voice by language.
        real: path, transcript and language of real recordings.
        real_share: how often a real one comes.
        seconds: longer ones are drawn anew.
        most_words: of a synthesised phrase.
        noise: how often there is some.
        seed: each worker draws from its own stream of it.
    """

    def __init__(
        self,
        texts: Texts,
        voices: dict[str, str | None],
        real: list[tuple[Path, str, str]],
        *,
        real_share: float = 0.3,
        seconds: float = 12.0,
        most_words: int = MOST_WORDS,
        noise: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.texts = texts
        self.voices = {language: voice for language, voice in voices.items() if voice is not None}
        self.real = real
        self.real_share = real_share if real else 0.0
        self.seconds = seconds
        self.most_words = most_words
        self.noise = noise
        self.seed = seed

    def __iter__(self) -> Iterator[Spoken]:
        worker = get_worker_info()
        generator = np.random.default_rng((self.seed, 0 if worker is None else worker.id))
        while True:
            spoken = self.draw(generator)
            if spoken is not None:
                yield spoken

    def draw(self, generator: np.random.Generator) -> Spoken | None:
        """One recording; ``None`` where nothing is heard or it is too long."""
        if generator.random() < self.real_share:
            path, text, language = self.real[int(generator.integers(len(self.real)))]
            # There is little of it: each time it is a little faster or slower, and higher or lower.
            waveform = soxr.resample(read_audio(path, RATE), RATE, RATE * float(generator.uniform(0.9, 1.1)))
            spoken = Spoken(waveform, text, language)
        else:
            language = sorted(self.voices)[int(generator.integers(len(self.voices)))]
            spoken = self._synthesise(self.texts.phrase(language, generator, self.most_words), language, generator)
        waveform = spoken.waveform
        if not 0.1 * RATE < len(waveform) <= self.seconds * RATE or not spoken.text:
            return None
        if generator.random() < self.noise:
            noise = colored_noise(len(waveform), float(generator.uniform(-0.5, 2.0)), generator)
            waveform = mix_at_snr(waveform, noise, float(generator.uniform(5.0, 35.0)))
        level = 10 ** generator.uniform(-1.5, 0.0) / max(float(np.abs(waveform).max()), 1e-6)
        return replace(spoken, waveform=(level * waveform).astype(np.float32))

    def _synthesise(self, text: str, language: str, generator: np.random.Generator) -> Spoken:
        names = variants()
        try:
            waveform, phones, words = synthesizer().synthesize_words(
                text,
                self.voices[language],
                names[int(generator.integers(len(names)))],
                int(generator.integers(120, 230)),
                int(generator.integers(20, 80)),
            )
        except ConfigError:  # A text without sound, such as the French "ent".
            return Spoken(np.zeros(0, dtype=np.float32), text, language)
        heard = tuple((segment.phone, segment.start, segment.end) for segment in segments_of(waveform, phones))
        letters = (*((word.position, word.start) for word in words), (len(text), len(waveform) / RATE))
        return Spoken(waveform, text, language, heard, letters).trimmed()
