"""Dates as people write them in twenty languages, from the tables of the Unicode CLDR in Babel.

The language is the first token of a text, since 3/7/2031 is a day in March or in July by the
language alone. All dates are of one century, so that a year of two digits is a year, too.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from functools import cache
from typing import NamedTuple

import torch
from babel import Locale
from babel.dates import format_date
from torch import Tensor

LANGUAGES = (
    *("cs", "de", "el", "en", "es", "fi", "fr", "he", "hi", "hu"),
    *("it", "ja", "ko", "nl", "pl", "pt", "ru", "sv", "tr", "uk"),
)
FIRST, DAYS = date(1950, 1, 1), 36525  # up to the end of 2049
FORMATS = ("full", "long", "medium", "short")
SKELETONS = ("yMd", "yMEd", "yMMMd", "yMMMMd")
DIGITS = "0123456789-"
END, START = len(DIGITS), len(DIGITS) + 1
TARGET_VOCAB = START + 1
WRITTEN = len("2031-03-07") + 1  # characters of a target, the end among them


class Example(NamedTuple):
    language: str
    pattern: str
    day: date

    @property
    def text(self) -> str:
        return format_date(self.day, self.pattern, locale=self.language)


@cache
def phrasings(language: str) -> tuple[str, ...]:
    """Patterns of a language that are learned, each once."""
    locale = Locale.parse(language)
    patterns = [locale.date_formats[name].pattern for name in FORMATS]
    skeletons = locale.datetime_skeletons
    patterns += [skeletons[name].pattern for name in SKELETONS if name in skeletons]
    patterns += [short_weekday(patterns[0]), short_month(patterns[0])]
    return tuple(dict.fromkeys(patterns))


@cache
def held_out_phrasings() -> dict[str, str]:
    """The pattern of each language that is never learned, where it is not one of the others.

    It has a short weekday and a short month, as in "Fri, Mar 7, 2031": each is learned beside the
    other one in full, and in other patterns.
    """
    short = {name: short_weekday(short_month(phrasings(name)[0])) for name in LANGUAGES}
    return {name: p for name, p in short.items() if p not in phrasings(name) and has_short(name)}


def has_short(language: str) -> bool:
    """Whether months have short names, other than the long ones."""
    months = Locale.parse(language).months["format"]
    return months["wide"] != months["abbreviated"]


def short_weekday(pattern: str) -> str:
    return pattern.replace("EEEE", "E").replace("cccc", "ccc")


def short_month(pattern: str) -> str:
    return pattern.replace("MMMM", "MMM")


@cache
def days(held_out: bool) -> Tensor:
    """Numbers of the days that are held out, a tenth of all, or of all others; int64."""
    order = torch.randperm(DAYS, generator=torch.Generator().manual_seed(0))
    return order[: DAYS // 10] if held_out else order[DAYS // 10 :]


@cache
def vocabulary() -> dict[str, int]:
    """Numbers of the languages, and of all characters that dates are written with."""
    week = [date(2023, month, day) for month in range(1, 13) for day in range(1, 8)]
    patterns = [(name, p) for name in LANGUAGES for p in phrasings(name)]
    texts = [Example(*phrasing, day).text for phrasing in patterns for day in week]
    characters = sorted(set(DIGITS).union(*texts))
    return {name: number for number, name in enumerate([*LANGUAGES, *characters])}


def read(example: Example) -> Tensor:
    """The language and the characters, int64 (1 + length,)."""
    number = vocabulary()
    return torch.tensor([number[example.language], *(number[c] for c in example.text)])


def write(days: Sequence[date]) -> Tensor:
    """The characters of ISO 8601, and the end, int64 (dates, WRITTEN)."""
    return torch.tensor([[*(DIGITS.index(c) for c in day.isoformat()), END] for day in days])


def written(tokens: Tensor) -> str:
    """What a model wrote."""
    return "".join(DIGITS[token] for token in tokens.tolist() if token < END)


def draw(count: int, *, held_out: bool = False) -> list[Example]:
    """Examples by torch's generator: of any language, any of its phrasings, any day."""
    examples, among = [], days(held_out)
    for language, phrasing, day in torch.rand(count, 3).tolist():
        name = LANGUAGES[int(language * len(LANGUAGES))]
        pattern = phrasings(name)[int(phrasing * len(phrasings(name)))]
        number = int(among[int(day * len(among))])
        examples.append(Example(name, pattern, FIRST + timedelta(days=number)))
    return examples


def draw_phrasing(count: int) -> list[Example]:
    """Examples of phrasings that are held out, on days that are; none as a learned one has it."""
    found: list[Example] = []
    patterns = list(held_out_phrasings().items())
    while len(found) < count:
        example = Example(*patterns[len(found) % len(patterns)], draw(1, held_out=True)[0].day)
        if all(
            example._replace(pattern=p).text != example.text for p in phrasings(example.language)
        ):
            found.append(example)
    return found
