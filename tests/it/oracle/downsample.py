"""Windows of a stream, computed again from its rows with pandas and numpy.

Usage: downsample.py ROWS.jsonl OURS.jsonl CONFIG.json

Ends with an error where a window is missing, is there twice, or has another value: percentiles by more than one
percent, anything else by more than 1e-9, relative.
"""

import json
import sys

import numpy as np
import pandas as pd

rows = pd.read_json(sys.argv[1], lines=True, convert_dates=False)
ours = pd.read_json(sys.argv[2], lines=True, convert_dates=False)
config = json.load(open(sys.argv[3]))
lateness, size, every, gap = (config.get(key) for key in ("lateness", "size", "every", "gap"))


def starts(time):
    first = (time - size) // every * every + every
    return range(first, time + 1, every)


def windows(device):
    """Members of each window, as positions in the device's rows: as they would be taken in one by one."""
    closed, newest, finished, open_ = -(2**62), None, [], []
    late = []
    for position, time in enumerate(device["timestamp"]):
        if gap is None:
            spans = [(start, start + size) for start in starts(time) if start + size > closed]
        else:
            spans = [(time, time + gap)] if time + gap > closed else []
        if not spans:
            late.append(position)
            continue
        for start, end in spans:
            if gap is None:
                same = [window for window in open_ if window[0] == start]
            else:
                same = [window for window in open_ if window[0] < end and time < window[1]]
            joined = [min([start, *(w[0] for w in same)]), max([end, *(w[1] for w in same)]), [position]]
            for window in same:
                joined[2] = window[2] + joined[2]
                open_.remove(window)
            open_.append(joined)
        newest = time if newest is None else max(newest, time)
        closed = max(closed, newest - lateness)
        finished += [window for window in open_ if window[1] <= closed]
        open_ = [window for window in open_ if window[1] > closed]
    return finished + open_, late


def over_time(samples, between):
    # Of two at one time the later one counts.
    samples = samples[~samples["timestamp"].duplicated(keep="last")].sort_values("timestamp")
    time, value = samples["timestamp"].to_numpy(), samples["temperature"].to_numpy()
    if len(time) < 2:
        return value[-1] if len(time) else np.nan
    area = np.trapezoid(value, time) if between == "line" else np.sum(value[:-1] * np.diff(time))
    return area / (time[-1] - time[0])


expected, late = [], 0
for name, device in rows.groupby("device_id", sort=False):
    device = device.reset_index(drop=True)
    found, left_out = windows(device)
    late += len(left_out)
    for start, end, members in found:
        part = device.loc[sorted(members)]
        values = part.dropna(subset=["temperature"])
        # A stable sort: of two at one time the one that came first is first, and the one that came last last.
        ordered = values.sort_values("timestamp", kind="stable")["temperature"]
        column = values["temperature"]
        expected.append(
            {
                "device_id": name,
                "window_start": start,
                "window_end": end,
                "readings": len(part),
                "values": len(values),
                "sum": column.sum() if len(values) else np.nan,
                "mean": column.mean(),
                "stddev": column.std(ddof=1),
                "min": column.min(),
                "max": column.max(),
                "first": ordered.iloc[0] if len(ordered) else np.nan,
                "last": ordered.iloc[-1] if len(ordered) else np.nan,
                "p05": np.percentile(column, 5, method="lower") if len(values) else np.nan,
                "p50": np.percentile(column, 50, method="lower") if len(values) else np.nan,
                "p99": np.percentile(column, 99, method="lower") if len(values) else np.nan,
                "step": over_time(values, "step"),
                "line": over_time(values, "line"),
            }
        )

key = ["device_id", "window_start", "window_end"]
expected = pd.DataFrame(expected).set_index(key).sort_index()
for column in expected.columns:
    if column not in ours:
        ours[column] = np.nan
ours = ours.set_index(key).sort_index()
assert ours.index.is_unique, "a window is told twice"
assert list(expected.index) == list(ours.index), expected.index.symmetric_difference(ours.index)
for column in expected.columns:
    left, right = expected[column].astype(float).to_numpy(), ours[column].astype(float).to_numpy()
    tolerance = 0.01 + 1e-9 if column.startswith("p") else 1e-9
    scale = np.abs(left) if column.startswith("p") else np.maximum(np.abs(left), 1e-3)
    bad = ~(np.abs(left - right) <= tolerance * scale) & ~(np.isnan(left) & np.isnan(right))
    assert not bad.any(), f"{column}: {left[bad][:3]} but {right[bad][:3]}"
assert late == config["late"], f"{late} rows are late, not {config['late']}"
assert len(expected) > 20 and late > 0, "too little to prove anything"
print(f"{len(expected)} windows, {late} late rows")
