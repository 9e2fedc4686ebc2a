"""Transcripts in one form: each script keeps its own letters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambavox.asr.text import language_code, normalize_text, words_of

ZWNJ = "\u200c"


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Well—it's  “O’Brien’s” dog; isn't it?", "well it's o'brien's dog isn't it"),
        ("en", "'Quoted' words' end", "quoted words end"),
        ("en", "Caf\u00e9 and cafe\u0301 ﬁnd \uff21\uff22\uff13", "café and café find ab3"),
        ("de", "Straße, ÄRGER & Öl!", "straße ärger öl"),
        ("eo", "Ĉu ŝi ĝojas? L' ĥoro, Ŭa: «ĵaŭdo».", "ĉu ŝi ĝojas l' ĥoro ŭa ĵaŭdo"),
        ("kab", "Ẓriɣ-t, D'acu? ČEḌḌA Ǧ ḤṢṬṚ", "ẓriɣ t d'acu čeḍḍa ǧ ḥṣṭṛ"),
        ("kab", "γef ε Σli Γ Ɛ Ɣ", "ɣef ɛ ɛli ɣ ɛ ɣ"),
        ("rw", "N'ubu, n’abandi.", "n'ubu n'abandi"),
        ("tr", "IŞIK İstanbul", "ışık istanbul"),
        ("en", "İstanbul", "istanbul"),
        ("ro", "Ţară şi", "țară și"),
        ("ca", "Col·legi · l'aigua", "collegi l'aigua"),
        ("uz", "Oʻzbekiston bogʻ toʼ", "o'zbekiston bog' to'"),
        ("ab", "Ҧсны аҕба, Ԥсны аӷба — Ҿ Ҽ Ҩ Ӡ Ҟ", "ԥсны аӷба ԥсны аӷба ҿ ҽ ҩ ӡ ҟ"),
        ("ru", "За\u0301мок Ёжик и Йод", "замок ёжик и йод"),
        ("mk", "Ќе Ѓорѓи", "ќе ѓорѓи"),
        ("uk", "П’ять м'яч", "п'ять м'яч"),
        ("ar", "أهلًا وَسَهْلًا، كتاب؟ ١٢٣ ﻻ مـــرحبا", "أهلا وسهلا كتاب 123 لا مرحبا"),
        ("ar", "کتاب فی", "كتاب في"),
        ("fa", f"مي{ZWNJ}روم كتاب ۱۲۳", "میروم کتاب 123"),
        ("ur", "كيا هے", "کیا ہے"),
        ("ckb", f"ده{ZWNJ}وڵه{ZWNJ}ت، كوردى", "دەوڵەت کوردی"),
        ("ckb", "هەموو ھەموو هـ", "ھەموو ھەموو ھ"),
        ("ckb", "ئێمە ڕۆژ ڤ گ چ پ ژ ڵ", "ئێمە ڕۆژ ڤ گ چ پ ژ ڵ"),
        ("zh", "你好，世界！ 我 用 Python 3。", "你好世界我用 python 3"),
        ("zh-CN", "ＡＢＣ，三", "abc 三"),
        ("ja", "ﾃｽﾄ、コンピューター・時々。 東京 です", "テストコンピューター時々東京です"),
        ("ko", "\u1112\u1161\u11ab국어, 좋아요! ㅋㅋ", "한국어 좋아요 ㅋㅋ"),
        ("hi", "नमस्ते, क्या हाल है? १२", "नमस्ते क्या हाल है 12"),
        ("he", 'צה"ל שָׁלוֹם', "צהל שלום"),
        (None, "", ""),
        (None, " … !? \u200b ", ""),
        (None, "❤️ a\u00adb", "ab"),
    ],
)
def test_letters_stay_and_the_rest_goes(language, text, expected):
    assert normalize_text(text, language) == expected


def test_without_a_language_no_letter_becomes_another():
    assert normalize_text("ҧ ي ی γ ş") == "ҧ ي ی γ ş"


@pytest.mark.parametrize("language", [None, "ckb", "ar", "tr", "zh", "eo", "ko", "kab", "he"])
@given(text=st.text(max_size=20))
def test_twice_is_once_and_the_form_is_composed(language, text):
    once = normalize_text(text, language)
    assert normalize_text(once, language) == once
    assert unicodedata.normalize("NFC", once) == once
    assert once == " ".join(once.split())
    assert not any(unicodedata.category(character)[0] in "PSC" for character in once.replace("'", ""))


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("zh-CN", "zh"),
        ("cmn_hans_cn", "zh"),
        ("ckb_iq", "ckb"),
        ("epo", "eo"),
        ("EN_us", "en"),
        (None, ""),
        ("nld", "nl"),
        ("sv-SE", "sv"),
        ("swh", "sw"),
        ("yue_hant_hk", "yue"),
        ("kab", "kab"),
        ("not a tag", "not a tag"),
    ],
)
def test_codes(tag, code):
    assert language_code(tag) == code


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "a b cd", ["a", "b", "cd"]),
        ("zh", "你好 python 3", ["你", "好", "python", "3"]),
        ("zh", "用python吧", ["用", "python", "吧"]),
        ("th", "กข ค", ["ก", "ข", "ค"]),
        ("ko", "한국 말", ["한국", "말"]),
        (None, "", []),
    ],
)
def test_words(language, text, expected):
    assert words_of(text, language) == expected
