"""Rows that stay of a stream, chosen again from its rows with pandas and numpy.

Usage: thin.py ROWS.jsonl OURS.json CONFIG.json

Each row has a `number`, which is its place in the stream. Ends with an error where other rows stay or are late, or
where a reading that is left out lies beyond its bound. The rules are tried as they are stated, all rows of a segment
anew for each row: slow, and with nothing remembered that could be wrong.
"""

import json
import sys

import numpy as np
import pandas as pd

rows = pd.read_json(sys.argv[1], lines=True, convert_dates=False).set_index("number")
ours = json.load(open(sys.argv[2]))
config = json.load(open(sys.argv[3]))
columns = config["columns"]
absolute = np.array([config.get("absolute", {}).get(column, 0) for column in columns])
percent = np.array([config.get("percent", {}).get(column, 0) for column in columns])
heartbeat = config.get("heartbeat", 2**62)


def in_order(device):
    """The numbers of a device's rows by time, and of those that come too late."""
    waiting, ordered, late, newest, decided = [], [], [], -(2**62), -(2**62)
    for number, time in device["timestamp"].items():
        if time < decided:
            late.append(number)
            continue
        newest = max(newest, time)
        waiting.append((time, number))
        ready = sorted(entry for entry in waiting if entry[0] <= newest - config["lateness"])
        waiting = [entry for entry in waiting if entry[0] > newest - config["lateness"]]
        ordered += [number for _, number in ready]
        decided = ready[-1][0] if ready else decided
    return ordered + [number for _, number in sorted(waiting)], late


def told(said, values):
    """Whether each reading is told: no value by no value, any other within its bound."""
    bound = np.maximum(absolute, percent / 100 * np.abs(values))
    neither = np.isnan(said) & np.isnan(values)
    return neither | (np.abs(said - values) <= bound + 1e-12 * np.maximum(np.abs(said), np.abs(values)))


def bounded(times, values, needs):
    """Places that stay: the ends, those that a rule needs, and those without which a heartbeat would be missing."""
    kept = [0]
    for at in range(1, len(times)):
        if at - 1 > kept[-1] and times[at] - times[kept[-1]] > heartbeat:
            kept.append(at - 1)
        place = needs(kept[-1], at)
        if place is not None and place != kept[-1]:
            kept.append(place)
    return sorted({*kept, len(times) - 1})


def dead_band(times, values):
    return bounded(times, values, lambda kept, at: None if told(values[kept], values[at]).all() else at)


def swinging_door(times, values):
    def needs(kept, at):
        between = slice(kept + 1, at)
        elapsed = np.maximum(times[at] - times[kept], 1)
        part = ((times[between] - times[kept]) / elapsed)[:, None]
        line = values[kept] * (1 - part) + values[at] * part
        # A line from or to nothing is none; nothing tells nothing.
        line = np.where(np.isnan(values[kept]) & np.isnan(values[at]), np.nan, line)
        broken = np.isnan(values[kept]) != np.isnan(values[at])
        is_told = told(line, values[between]).all() and not (broken.any() and at > kept + 1)
        return None if is_told else at - 1

    return bounded(times, values, needs)


def largest_triangles(x, y, points):
    """As published: Sveinn Steinarsson, Downsampling Time Series for Visual Representation, 2013."""
    n = len(x)
    if n <= points:
        return range(n)
    edges = [part * (n - 2) // (points - 2) + 1 for part in range(points)]
    edges[-1] = n
    kept = [0]
    for part in range(points - 2):
        a, here, after = kept[-1], slice(edges[part], edges[part + 1]), slice(edges[part + 1], edges[part + 2])
        area = (x[a] - x[after].mean()) * (y[here] - y[a]) - (x[a] - x[here]) * (y[after].mean() - y[a])
        kept.append(edges[part] + int(np.argmax(np.abs(area))))
    return [*kept, n - 1]


def by_bucket(times, values):
    kept = set()
    buckets = pd.Series(times // config["every"])
    for _, bucket in buckets.groupby(buckets):
        places = bucket.index.to_numpy()
        kept |= {places[0], places[-1]}
        for column in range(values.shape[1]):
            valued = places[~np.isnan(values[places, column])]
            if not len(valued):
                continue
            y = values[valued, column]
            if config["method"] == "min_max":
                chosen = [0, np.argmin(y), np.argmax(y), len(y) - 1]
            else:
                chosen = largest_triangles((times[valued] - times[places[0]]).astype(float), y, config["points"])
            kept |= {valued[place] for place in chosen}
    return sorted(kept)


methods = {"dead_band": dead_band, "swinging_door": swinging_door, "lttb": by_bucket, "min_max": by_bucket}
stays, late, error = 0, 0, 0.0
kept_numbers = set(ours["kept"])
assert len(kept_numbers) == len(ours["kept"]), "a row leaves twice"
for name, device in rows.groupby("device_id", sort=False):
    ordered, too_late = in_order(device)
    device = device.loc[ordered]
    times, values = device["timestamp"].to_numpy(), device[columns].to_numpy(dtype=float)
    expected = [ordered[place] for place in methods[config["method"]](times, values)]
    mine = set(ordered)
    found = [number for number in ours["kept"] if number in mine]
    assert found == expected, f"{name}: {sorted(set(found) ^ set(expected))[:10]} stay or do not"
    found = [number for number in ours["late"] if rows.loc[number, "device_id"] == name]
    assert found == too_late, f"{name}: late are {too_late}, not {found}"
    stays, late = stays + len(expected), late + len(too_late)
    # The guarantee, by other means than the rule: what a reader does who has only what was kept.
    if config["method"] in ("dead_band", "swinging_door") and len(np.unique(times)) == len(times):
        kept = np.isin(ordered, expected)
        for column in range(len(columns)):
            if np.isnan(values[:, column]).any():
                continue
            if config["method"] == "swinging_door":
                said = np.interp(times.astype(float), times[kept].astype(float), values[kept, column])
            else:
                said = pd.Series(np.where(kept, values[:, column], np.nan)).ffill().to_numpy()
            bound = np.maximum(absolute[column], percent[column] / 100 * np.abs(values[:, column]))
            off = np.abs(said - values[:, column])
            assert (off <= bound + 1e-9 * np.abs(values[:, column])).all(), f"{name}: {(off - bound).max()} beyond"
            error = max(error, off.max())

assert late == len(ours["late"])
assert 0 < stays < len(rows), "too little to prove anything"
print(f"{stays} of {len(rows)} rows stay, {late} late, farthest off {error:.6g}")
