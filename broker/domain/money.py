"""Money: whole nano-dollars, unit prices in whole pico-dollars; never a float on the way.

1 USD = 10^9 nano-USD = 10^12 pico-USD. An int64 of nano-USD holds 9.2 billion dollars.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation, localcontext
from typing import NewType

__all__ = [
    "NANO_PER_USD",
    "PICO_PER_USD",
    "NanoUsd",
    "PicoUsd",
    "divide_half_even",
    "format_usd",
    "nano_from_usd",
    "pico_from_usd",
]

NanoUsd = NewType("NanoUsd", int)
PicoUsd = NewType("PicoUsd", int)

NANO_PER_USD = 1_000_000_000
PICO_PER_USD = 1_000_000_000_000
_INT64_MAX = 2**63 - 1


def divide_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` rounded to the nearest whole number, ties to the even one."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient % 2 == 1):
        quotient += 1
    return quotient


def nano_from_usd(text: str) -> NanoUsd:
    """Nano-dollars of a decimal dollar amount such as `0.25`; refuses more than nine decimals."""
    return NanoUsd(_scaled(text, NANO_PER_USD))


def pico_from_usd(text: str) -> PicoUsd:
    """Pico-dollars of a decimal dollar price such as `2.70`; refuses more than twelve decimals."""
    return PicoUsd(_scaled(text, PICO_PER_USD))


def _scaled(text: str, scale: int) -> int:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in dollars, such as 0.25") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{text!r} is not an amount in dollars of 0 or more")
    if amount > _INT64_MAX // scale:
        raise ValueError(f"{text!r} is more than {_INT64_MAX // scale:,} dollars")
    with localcontext(prec=len(text) + len(str(scale))):  # enough for the product to be exact
        scaled = amount * scale
        whole = scaled.to_integral_value()
    if scaled != whole:
        raise ValueError(f"{text!r} has more decimals than the {len(str(scale)) - 1} that are kept")
    return int(whole)


def format_usd(amount: int) -> str:
    """Dollars for people: two decimals for large amounts, up to nine for small ones, exact to the nano-dollar."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, nano = divmod(amount, NANO_PER_USD)
    decimals = f"{nano:09d}".rstrip("0")
    return f"{sign}${whole:,}.{decimals.ljust(2, '0')}"
