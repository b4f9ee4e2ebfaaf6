# ruff: noqa: RUF001 - look-alike punctuation and letters are what this file is about
"""Full stops that end no sentence: abbreviations, initials and ordinals, by language.

The abbreviations are those of Unicode CLDR (cldr.json), and those that CLDR lacks. CLDR lists some ordinary words, such
as "in." for inches; with a capital after them these end a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import NamedTuple

# The words that a language is told by. No two languages share a word.
_COMMON_WORDS = {
    "en": "the and of was with that this have from",
    "de": "der die das und ist nicht ein mit auf für",
    "fr": "les et dans une est pour qui au",
    "es": "el los y del por las pero muy hay",
    "it": "il di che gli della sono è ed nel",
    "pt": "o os uma não ao com são dos em",
    "nl": "het een van niet zijn dat op voor",
    "pl": "się nie jest że jak czy",
}

# Abbreviations that stand before a name, a number or a word in capitals, and end no sentence whatever follows.
_BEFORE_CAPITALS = {
    "en": "Mr Mrs Ms Mx Messrs Dr Drs Prof Rev Hon Pres Gov Sen Rep Amb Capt Cmdr Cdr Col Gen Maj Lt Sgt Cpl Pvt Adm"
    " Brig Msgr Rt"
    " Supt Asst Atty Insp Det Ald Bros Mme Mmes Mlle St Ste Mt Ft"
    " Fig Figs Eq Eqs Vol Vols vol vols fig figs vs cf viz approx ca e.g i.e eg ie",
    "de": "Hr Hrn Fr Frl Dr Prof Dipl Ing Mag Hl St Nr Nrn Abb Bd Kap Vgl vgl Abt bzw ggf evtl ca inkl exkl sog bspw lt"
    " zzgl einschl insb insbes Hrsg geb gest z.B d.h u.a i.d.R o.g v.a z d",
    "fr": "M MM Me Mme Mmes Mlle Mlles Mgr Dr Pr Prof St Ste env cf av apr vol fig chap p ex p.ex",
    "es": "Sr Sra Srta Sres Sras D Dª Dña Dr Dra Prof Profa Lic Ing Arq Ud Uds Vd Vds Gral Cap Cnel Sto Sta Av Avda EE"
    " Hnos Excmo Excma Ilmo Ilma núm pág págs aprox ej p.ej",
    "it": "Sig Sigg Sig.ra Dott Dott.ssa Prof Prof.ssa Ing Avv Arch Geom Mons Spett pag pagg cfr Cfr",
    "pt": "Sr Sra Srs Sras Srta Dr Dra Drs Prof Profa Eng Exmo Exma Ilmo Av pág págs aprox ex p.ex",
    "nl": "Dhr dhr mevr Mevr Mw mw dr drs mr ir ing prof ds nr blz bijv bv o.a d.w.z ca",
    "pl": "prof dr mgr inż ks św im ul nr np tj ok str rys gen płk kpt hab al pl os",
    "ru": "г ул просп пл пер оз пос дер стр рис табл гл им проф акад доц св т.е т см ср напр",
}

# Languages that write titles small within a sentence.
_SMALL_TITLES = frozenset({"es", "it", "pt", "nl"})

# Abbreviations that a sentence may well end with: so a line may break there if a capital follows.
_AT_ENDS = {
    "en": "al etc Inc Ltd Co Corp Jr Sr Nos pp Sec Ch Eq ed eds dept univ ave blvd rd No Art Jan Feb Apr Aug Sept Oct"
    " Nov Dec Tue Tues Thu Thurs Fri est min max misc no nos p"
    " Mon Wed Thur Sat Sun sect para app trans ibid cit chap ch",
    "de": "usw etc Abs Art Tel Std Min Mio Mrd",
    "fr": "etc art éd réf bd no tél janv févr",
    "es": "etc UU Cía Ltda tel art vol s",
    "it": "ecc art sec vol n es tel",
    "pt": "etc Ltda art vol n tel",
    "nl": "enz jl jr sr",
    "pl": "itd itp godz tys zł",
    "ru": "гг д п тыс млн млрд руб коп др пр э н в вв кв ст р",
}

# Words of CLDR's lists and of ours that are ordinary words first.
_ORDINARY = """
    no in on do go is by to or up as all act hat link job joe long card min test port best max am so sa mo di id pro i
    mer mar sol bien kit ver out com mai pal ill fund jam mart cap ed rep art end app
"""

_NO_WORD = re.compile(r"(?:[^\W\d]{1,2}\.)+[^\W\d]{1,2}\.|[^\W\d]\.")
_INITIAL = re.compile(r"[^\W\d]\.")
ORDINAL = re.compile(r"\d{1,2}\.")
# What stands before an abbreviation in one word: an article that is elided, a title, or mark-up.
_BEFORE = re.compile(r"\A(?:[^\W\d]{1,6}['’]|.*[-–—/])(?=[^\W\d]{2,}\.\Z)")
_OPENERS = "\"'“‘„«‹([{¿¡*_—–"
# Words that German writes with a name in one.
_COMPOUND = re.compile(r"[^\W\d]{2,}(?:str|nr|tel)\.")
# "St." before one of these is a street, and may end a sentence.
_NO_SAINTS = frozenset(
    [
        "The",
        "He",
        "She",
        "It",
        "They",
        "We",
        "I",
        "You",
        "This",
        "That",
        "There",
        "But",
        "And",
        "In",
        "On",
        "At",
    ]
)


class Abbreviations(NamedTuple):
    """Of one language, or of all. Each ends with a full stop."""

    before_capitals: frozenset[str]
    known: frozenset[str]
    ordinals: bool
    """Whether the language writes its ordinal numbers with a full stop."""

    def holds(self, word: str, following: str) -> bool:
        """Whether the word, which ends with a full stop, belongs together with the text that follows."""
        word = _bare(word)
        if word == "St." and following in _NO_SAINTS:
            return False
        if word in self.before_capitals or (_INITIAL.fullmatch(word) and word != "I."):
            return True
        if ORDINAL.fullmatch(word):
            return self.ordinals
        return not _capital(following) and self._abbreviates(word)

    def ends_sentence(self, word: str, following: str) -> bool:
        """Whether the word's full stop ends a sentence."""
        word = _bare(word)
        if self.holds(word, following):
            return False
        return not self._abbreviates(word) or (_capital(following) and word[:-1].lower() in _ORDINARY.split())

    def _abbreviates(self, word: str) -> bool:
        return word in self.known or bool(
            _NO_WORD.fullmatch(word) or (self.ordinals and _COMPOUND.fullmatch(word))
        )


@cache
def abbreviations(language: str) -> Abbreviations:
    """Those of a language. Those of all languages where the language is none that we know."""
    told = language in _BEFORE_CAPITALS
    languages = [language] if told else list(_BEFORE_CAPITALS)
    before = _listed(_BEFORE_CAPITALS, languages)
    at_ends = _listed(_AT_ENDS, languages)
    parts = (part for name in languages for entry in _suppressions().get(name, []) for part in entry.split())
    return Abbreviations(before, before | at_ends | frozenset(parts), not told or language in {"de", "pl"})


def language_of(text: str) -> str:
    """The language that the most common words or the letters of a text tell, as ISO 639-1. Empty if they tell none."""
    words = re.findall(r"[^\W\d_]+", text[:20_000].lower())
    if sum("а" <= word[0] <= "я" for word in words) * 2 > len(words):
        return "ru"
    counts = {
        language: sum(word in common for word in words)
        for language, common in ((name, frozenset(line.split())) for name, line in _COMMON_WORDS.items())
    }
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else ""


def _listed(lists: Mapping[str, str], languages: list[str]) -> frozenset[str]:
    """With a full stop, and as it stands at the beginning of a sentence as well."""
    words = {word for language in languages for word in lists[language].split()}
    words |= {
        word.lower()
        for language in languages
        if language in _SMALL_TITLES
        for word in lists[language].split()
    }
    return frozenset(f"{form}." for word in words for form in (word, word[0].upper() + word[1:]))


def _bare(word: str) -> str:
    """The abbreviation in a word such as "dell'art." or "Prof.-Dr."."""
    return _BEFORE.sub("", word.lstrip(_OPENERS), count=1)


@cache
def _suppressions() -> dict[str, list[str]]:
    file = resources.files("engine.pipelines.storyboard").joinpath("cldr.json")
    found: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))["suppressions"]
    return found


def _capital(following: str) -> bool:
    return following.lstrip(_OPENERS)[:1].isupper()
