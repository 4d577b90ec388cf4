"""Computed columns and converted units, computed again with numpy and with fractions.

Usage: compute.py ROWS.jsonl OURS.jsonl

Ends with an error where a value differs by more than 1e-9, relative, or is null where it is not, or the other way.
"""

import sys
from fractions import Fraction

import numpy as np
import pandas as pd

rows = pd.read_json(sys.argv[1], lines=True, convert_dates=False)
ours = pd.read_json(sys.argv[2], lines=True, convert_dates=False)
a, b, n = rows["a"].astype(float), rows["b"].astype(float), rows["n"]

# Definitions: the inch is 25.4 mm, the pound 0.45359237 kg, the US gallon 231 cubic inches, standard gravity 9.80665.
inch, pound, gravity = Fraction(254, 10000), Fraction(45359237, 10**8), Fraction(980665, 10**5)
factors = {
    "a_psi": 1000 * inch**2 / (pound * gravity),  # kPa
    "a_gpm": Fraction(1, 3600) / (231 * inch**3) * 60,  # m3/h
    "a_mph": Fraction(1, 1000 * 12 * 5280) / inch * 3600,  # mm/s
    "a_kwh": Fraction(1000, 3600000),  # kJ
    "a_rpm": Fraction(1, 6),  # deg/s
}
scales = {
    "a_celsius": lambda f: (f - 32) * Fraction(5, 9),
    "a_kelvin": lambda f: (f + Fraction(45967, 100)) * Fraction(5, 9),
}


def exactly(of):
    return [float(of(Fraction(value))) if np.isfinite(value) else np.nan for value in a]


with np.errstate(all="ignore"):
    quotient = a / b
    expected = {
        **{name: exactly(lambda value, factor=factor: value * factor) for name, factor in factors.items()},
        **{name: exactly(of) for name, of in scales.items()},
        "fahrenheit": a * 9 / 5 + 32,
        "quotient": quotient.where(np.isfinite(quotient)),
        "root": np.sqrt(a.where(a >= 0)),
        "power": np.power(np.abs(b), 1.5),
        "folded": np.where(a.isna(), np.nan, np.where(a > b, a - b, -(b - a))),
        "third": np.trunc(n / 3),
    }
missing = 0
for name, values in expected.items():
    values = np.asarray(values, dtype=float)
    found = (ours[name] if name in ours else pd.Series(np.nan, index=rows.index)).astype(float).to_numpy()
    assert (np.isnan(values) == np.isnan(found)).all(), f"{name}: null in {np.where(np.isnan(values) != np.isnan(found))[0][:5]}"
    off = np.abs(values - found) / np.maximum(np.abs(values), 1e-300)
    assert (np.nan_to_num(off) <= 1e-9).all(), f"{name}: {np.nanmax(off)}"
    missing += np.isnan(values).sum()
assert len(ours) == len(rows) > 100 and missing > 0, "too little to prove anything"
print(f"{len(expected)} columns of {len(rows)} rows")
