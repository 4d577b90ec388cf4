"""Rows of a table that were valid at the readings' times, found again with pandas.merge_asof.

Usage: as_of.py TABLE.jsonl READINGS.jsonl OURS.jsonl CONFIG.json

Ends with an error where another row, or none, was found for a reading.
"""

import json
import sys

import pandas as pd

table, readings, ours = (pd.read_json(path, lines=True, convert_dates=False) for path in sys.argv[1:4])
config = json.load(open(sys.argv[4]))
assert len(ours) == len(readings) and (ours["number"] == readings["number"]).all()

found = pd.merge_asof(
    readings.sort_values("timestamp", kind="stable"),
    table.sort_values("valid_from", kind="stable"),
    left_on="timestamp",
    right_on="valid_from",
    by="device_id",
    tolerance=config["max_age"],
)
if config["has_ends"]:
    has_ended = found["valid_to"].notna() & (found["timestamp"] >= found["valid_to"])
    found.loc[has_ended, "entry"] = None

theirs = found.set_index("number")["entry"].reindex(ours["number"]).to_numpy(dtype=float)
mine = ours["entry"].to_numpy(dtype=float)
same = (mine == theirs) | (pd.isna(mine) & pd.isna(theirs))
assert same.all(), f"{(~same).sum()} of {len(same)} differ, the first at reading {ours['number'][(~same).argmax()]}"
# Otherwise nothing was held against anything.
assert 0 < pd.isna(theirs).sum() < len(theirs)
