"""Transcripts in the form in which they are learned, compared and counted.

What is decided here, for every script:

- **NFKC.** Characters that differ in form but not in sound become one: full-width letters, half-width katakana, the
  presentation forms of Arabic, ligatures. The result is composed: one letter, one code point where there is one.
  Korean's single consonants and vowels (compatibility jamo) are left alone: NFKC would make them parts of syllables.
- **Lower case**, by the rules of the language: dotless i in Turkish and its neighbours.
- **Punctuation and symbols become spaces**, but apostrophes between letters stay, as ``'``. Letters, their marks and
  digits stay. Digits are not spelled out: do that to the transcripts, if they are to be read as words.
- **Invisible characters** (joiners, soft hyphens, directions) vanish without a space.
- **Decimal digits** of every script become 0 to 9.
- **Spellings that stand for the same letter** become one, by language: see the tables below.
"""

import re
import unicodedata
from contextlib import suppress

import langcodes

_STANDARD_FORMS = {
    "arb": "ar",
    "azj": "az",
    "cmn": "zh",
    "ekk": "et",
    "khk": "mn",
    "lvs": "lv",
    "npi": "ne",
    "ory": "or",
    "pbt": "ps",
    "pes": "fa",
    "plt": "mg",
    "swh": "sw",
    "uzn": "uz",
    "zsm": "ms",
}
"""The one variety of a language that its own code commonly stands for (ISO 639-3 macrolanguages)."""

UNSPACED = frozenset({"zh", "yue", "wuu", "ja", "th", "lo", "my", "km", "bo", "dz"})
"""Languages written without spaces between words: their words are counted as characters."""

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u201b\u0060\u00b4\u02bc\u02bb\u02b9\u2032\uff07\u05f3", "'"))
# Where words may begin or end with an apostrophe: elided endings of Esperanto; letters of Uzbek, Hawaiian and Tongan.
_EDGE_APOSTROPHES = frozenset({"eo", "uz", "haw", "to", "sm"})
_DOTLESS_I = frozenset({"tr", "az", "crh", "gag", "tt-latn"})

_JAMO = re.compile("([\u3131-\u318e]+)")
_ARABIC_SCRIPT = frozenset({"ar", "fa", "ckb", "sdh", "ur", "pnb", "ps", "sd", "ug"})
_ARABIC = re.compile("[\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff]")
# Vowel signs and other marks above and below, which most writers leave out; Quranic signs; tatweel.
_ARABIC_MARKS = re.compile("[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]")
_HEBREW_POINTS = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]")
_HEBREW_QUOTE = re.compile('(?<=[\u05d0-\u05ea])["\u05f4](?=[\u05d0-\u05ea])')
_VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
_CATALAN_DOT = re.compile("(?<=l)\u00b7(?=l)")
# Stress marks of Russian and other readers. What is a letter with an acute (ќ, ѓ) is one code point by now.
_CYRILLIC_STRESS = re.compile("(?<=[\u0400-\u052f])[\u0300\u0301]")
# Han, kana, and what stands among them: no spaces there.
_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_SPACE = re.compile(f"(?<=[{_CJK}]) +(?=[{_CJK}])")
_CJK_CHARACTER = re.compile(f"([{_CJK}])")
_HEH_AND_JOINER = re.compile("\u0647\u200c")
_HEH_AND_TATWEEL = re.compile("\u0647\u0640+")
_FINAL_HEH = re.compile("\u0647(?![\u0600-\u06ff])")

# Yeh and kaf as Persian, Kurdish and Urdu write them, and as Arabic does.
_FARSI_LETTERS = str.maketrans({"\u064a": "\u06cc", "\u0649": "\u06cc", "\u0643": "\u06a9"})
_ARABIC_LETTERS = str.maketrans({"\u06cc": "\u064a", "\u06a9": "\u0643"})
_SAME_LETTERS = {
    "ar": _ARABIC_LETTERS,
    "fa": _FARSI_LETTERS,
    "ckb": _FARSI_LETTERS,
    "sdh": _FARSI_LETTERS,
    "ur": _FARSI_LETTERS | str.maketrans({"\u0647": "\u06c1"}),
    "pnb": _FARSI_LETTERS | str.maketrans({"\u0647": "\u06c1"}),
    # Abkhaz: pe and ghe with a hook, as encoded before Unicode 5.2, are pe and ghe with a descender.
    "ab": str.maketrans({"\u04a7": "\u0525", "\u0495": "\u04f7"}),
    # Kabyle: Greek epsilon, sigma and gamma are typed for the Latin letters of that look.
    "kab": str.maketrans({"\u03b5": "\u025b", "\u03c3": "\u025b", "\u03c2": "\u025b", "\u03b3": "\u0263"}),
    # Romanian: s and t with a cedilla, for want of the comma in old fonts.
    "ro": str.maketrans({"\u015f": "\u0219", "\u0163": "\u021b"}),
}


def language_code(language: str | None) -> str:
    """The language of a tag, in its shortest form: ``zh-CN``, ``cmn_hans_cn`` and ``zho`` are all ``zh``.

    Args:
        language: IETF tag, whatever region or script follows; ``None`` gives the empty string, and what is no tag its
            first part.
    """
    primary = re.split("[-_]", (language or "").strip().lower())[0]
    with suppress(langcodes.LanguageTagError):
        primary = langcodes.standardize_tag(primary) if primary else ""
    return _STANDARD_FORMS.get(primary, primary)


def normalize_text(text: str, language: str | None = None) -> str:
    """A transcript without case, punctuation and differences of spelling that cannot be heard.

    The module says what is done. Normalising twice gives the same as normalising once.

    Args:
        text: any text.
        language: its language (``ckb``, ``zh-CN``, ``cmn_hans_cn``, ...). Without it no letter is replaced by another,
            but for case and form.

    Returns:
        Words separated by single spaces; Chinese and Japanese characters by none. Empty where nothing can be said.
    """
    code = language_code(language)
    normalized = _normalize(text, code)
    # What one step removes may have kept another one from its work: a mark between letters that compose.
    while (again := _normalize(normalized, code)) != normalized:
        normalized = again
    return normalized


def words_of(text: str, language: str | None = None) -> list[str]:
    """The words of a normalised transcript, as word error rates count them.

    Args:
        text: a normalised transcript.
        language: its language. In those of ``UNSPACED`` each character is a word; Latin words among Chinese or
            Japanese characters stay words.
    """
    code = language_code(language)
    if code in ("zh", "yue", "wuu", "ja"):
        return _CJK_CHARACTER.sub(r" \1 ", text).split()
    return [character for character in text if character != " "] if code in UNSPACED else text.split()


def _normalize(text: str, code: str) -> str:
    text = text.translate(_APOSTROPHES)
    text = "".join(
        piece if _JAMO.fullmatch(piece) else unicodedata.normalize("NFKC", piece) for piece in _JAMO.split(text)
    )
    text = _lower(text, code)
    if code in _ARABIC_SCRIPT or (not code and _ARABIC.search(text)):
        text = _normalize_arabic(text, code)
    if code == "he":
        text = _HEBREW_QUOTE.sub("", _HEBREW_POINTS.sub("", text))
    if code == "ca":
        text = _CATALAN_DOT.sub("", text)
    text = _CYRILLIC_STRESS.sub("", text).translate(_SAME_LETTERS.get(code, {}))
    text = _without_punctuation(text, code in _EDGE_APOSTROPHES)
    return unicodedata.normalize("NFC", _CJK_SPACE.sub("", " ".join(text.split())))


def _lower(text: str, code: str) -> str:
    if code in _DOTLESS_I:
        text = text.replace("\u0130", "i").replace("I", "\u0131")
    # The capital i with a dot becomes an i with a second dot elsewhere.
    return text.lower().replace("i\u0307", "i")


def _normalize_arabic(text: str, code: str) -> str:
    if code == "ckb":
        # The vowel was typed as heh and a non-joiner, or as heh at the end of a word; the consonant as heh.
        text = _HEH_AND_JOINER.sub("\u06d5", text)
        text = _HEH_AND_TATWEEL.sub("\u06be", text)
        text = _FINAL_HEH.sub("\u06d5", text).replace("\u0647", "\u06be")
    return _ARABIC_MARKS.sub("", text)


def _without_punctuation(text: str, edge_apostrophes: bool) -> str:
    """Only letters, marks, digits, and the apostrophes that belong to words; spaces for the rest."""
    kept = [_kept(character) for character in text]
    characters = "".join(kept)
    result = []
    for index, character in enumerate(characters):
        if character == "'":
            before = _is_letter(characters[index - 1 : index])
            after = _is_letter(characters[index + 1 : index + 2])
            belongs = (before or after) if edge_apostrophes else (before and after)
            result.append("'" if belongs else " ")
        else:
            result.append(character)
    return "".join(result)


def _kept(character: str) -> str:
    if character == "'":
        return character
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "Cf" or character in _VARIATION_SELECTORS:
        return ""
    return character if category[0] in "LMN" else " "


def _is_letter(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LMN"
