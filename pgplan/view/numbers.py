"""Numbers as people read them: GiB, ms and tokens, always with enough digits to tell stages apart."""

from __future__ import annotations

from functools import lru_cache

GIB = 1 << 30


# Most stages of a plan are alike, and most survive an edit: half of a redraw would be spent on their figures.
@lru_cache(maxsize=4096)
def gib(value_bytes: float) -> str:
    """Write bytes in GiB without the unit.

    >>> gib(34260123648), gib(171966464), gib(0)
    ('31.9', '0.16', '0')
    """
    return _rounded(value_bytes / GIB, digits=1 if abs(value_bytes) >= 9.95 * GIB else 2)


@lru_cache(maxsize=4096)
def milliseconds(seconds: float) -> str:
    """Write seconds in ms without the unit, to three significant digits.

    >>> milliseconds(0.0025), milliseconds(0.1264), milliseconds(1.2)
    ('2.50', '126', '1200')
    """
    value = seconds * 1e3
    return _rounded(value, digits=0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.1 else 3)


def duration(seconds: float) -> str:
    """Write seconds with the unit that suits them.

    >>> duration(0.0145), duration(15.2089)
    ('14.5 ms', '15.2 s')
    """
    return f"{milliseconds(seconds)} ms" if seconds < 10 else f"{seconds:,.1f} s"


def count(value: float) -> str:
    """Write a count in full, with a comma every three digits.

    >>> count(1192976.0)
    '1,192,976'
    """
    return f"{value:,.0f}"


def significant(value: float, *, digits: int = 3) -> str:
    """Write a number with as many digits as count, zeros at the end among them; never less than whole ones.

    >>> significant(14.988), significant(186.94), significant(28761.3), significant(0.06391)
    ('15.0', '187', '28,761', '0.0639')
    """
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".removesuffix(".")


def short_count(value: float) -> str:
    """Write a count in at most five characters.

    >>> short_count(1192976), short_count(87210), short_count(512)
    ('1.19M', '87.2k', '512')
    """
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # The next unit starts where rounding would otherwise print 1000.
        if abs(value) >= 0.9995 * scale:
            scaled = value / scale
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{suffix}"
    return f"{value:.0f}"


def share(fraction: float) -> str:
    """Write a fraction in percent.

    >>> share(0.25), share(0.004), share(0.0)
    ('25 %', '0.4 %', '0 %')
    """
    return f"{_rounded(fraction * 100, digits=0 if abs(fraction) >= 0.095 else 1).removesuffix('.0')} %"


def change(before: float, after: float) -> str:
    """Write how ``after`` differs from ``before``, in percent with a sign.

    >>> change(100, 114), change(100, 91.2), change(100, 100), change(0, 5)
    ('+14 %', '−8.8 %', '±0 %', 'from 0')
    """
    if before == after:
        return "±0 %"
    if before == 0:
        return "from 0"
    fraction = after / before - 1
    text = share(abs(fraction))
    return "±0 %" if text == "0 %" else f"{'+' if fraction > 0 else '−'}{text}"


def times(number: int, noun: str) -> str:
    """Write a number with its noun in the right form.

    >>> times(1, "layer"), times(20, "layer"), times(4, "microbatch")
    ('1 layer', '20 layers', '4 microbatches')
    """
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def _rounded(value: float, *, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return "0" if float(text) == 0 else text
