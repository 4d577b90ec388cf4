#!/usr/bin/env python3
"""Expected values of `anomaly`'s methods, from numpy, pandas and scipy.

    python3 -m venv venv && venv/bin/pip install numpy pandas scipy
    venv/bin/python stages/src/transforms/anomaly/tests/oracle.py

writes oracle/METHOD.csv beside this file: readings of three devices with noise, spikes, new levels, stuck
values, gaps, late, repeated and missing ones, and for each of them what the method says. Nothing here is
incremental: each row is measured anew over all that the device has taught, by the library's own
function. The seed is fixed; another run writes the same files.
"""

import math
import pathlib

import numpy
import pandas
import scipy.stats

WINDOW, WARMUP, RELEARN_AFTER, THRESHOLD = 16, 6, 4, 4.0
FLOOR, RELATIVE, SPREAD_MIN = 0.02, 0.0, 1e-9
SEASONS, SEASONAL_WARMUP = 4, 5
HOUR_US = 3_600_000_000
FLAT_WINDOW, FLAT_FOR_US, FLAT_TOLERANCE = 5, 40 * 60_000_000, 0.5
RATE_MAX = 0.02


class Device:
    """What one device has sent and taught."""

    def __init__(self):
        self.kept = []  # (time, value) of what is learned, in order
        self.before = None  # the newest reading in order, learned or not
        self.newest = None
        self.late = 0
        self.strikes = 0

    def is_in_order(self, time, late_max):
        if time is None:
            return False
        if self.newest is not None and time <= self.newest:
            self.late += 1
            if self.late < late_max:
                return False
        self.late, self.newest = 0, time
        return True


def floored(spread, expected):
    return max(spread, FLOOR, RELATIVE * abs(expected), SPREAD_MIN)


def zscore(device, time, value, in_order):
    window = numpy.array([v for _, v in device.kept[-WINDOW:]], dtype=numpy.float64)
    if len(window) < WARMUP:
        return None
    mean = window.mean()
    spread = floored(window.std(ddof=1), mean)
    return mean, spread, (value - mean) / spread


def ewma(device, time, value, in_order):
    if len(device.kept) < WARMUP:
        return None
    # As distances from the first reading: pandas rounds a mean to its own size.
    first = device.kept[0][1]
    weighted = pandas.Series([v - first for _, v in device.kept]).ewm(span=WINDOW)
    mean = weighted.mean().iloc[-1]
    spread = floored(weighted.std().iloc[-1], first + mean)
    return first + mean, spread, ((value - first) - mean) / spread


def robust(device, time, value, in_order):
    window = [v for _, v in device.kept[-WINDOW:]]
    if len(window) < WARMUP:
        return None
    median = numpy.median(window)
    spread = floored(scipy.stats.median_abs_deviation(window, scale="normal"), median)
    return median, spread, (value - median) / spread


def seasonal(device, time, value, in_order):
    if time is None:
        return None
    visit = time // HOUR_US
    earlier = [(t // HOUR_US, v) for t, v in device.kept if t // HOUR_US % 24 == visit % 24 and t // HOUR_US != visit]
    visits = sorted({v for v, _ in earlier}, reverse=True)
    if len(visits) < 2 or len(earlier) < SEASONAL_WARMUP:
        return None
    decay = 1.0 - 2.0 / (SEASONS + 1.0)
    weights = numpy.array([decay ** visits.index(v) for v, _ in earlier])
    values = numpy.array([v for _, v in earlier])
    mean = numpy.average(values, weights=weights)
    scatter = numpy.sum(weights * (values - mean) ** 2)
    spread = floored(math.sqrt(scatter / max(weights.sum() - 1.0, 1.0)), mean)
    return mean, spread, (value - mean) / spread


def rates(device):
    """Changes a second between readings that follow each other; those of flagged readings are left out."""
    return [rate for rate in device.rates][-WINDOW:]


def rate(device, time, value, in_order):
    if time is None or device.before is None or time <= device.before[0]:
        return None
    elapsed, change = (time - device.before[0]) / 1e6, value - device.before[1]
    window = numpy.array(rates(device))
    if len(window) < WARMUP:
        return None
    mean = window.mean()
    spread = floored(window.std(ddof=1) * elapsed, device.before[1])
    return device.before[1] + mean * elapsed, spread, (change - mean * elapsed) / spread


def rate_limit(device, time, value, in_order):
    if time is None or device.before is None or time <= device.before[0]:
        return None
    spread = RATE_MAX * (time - device.before[0]) / 1e6 / THRESHOLD
    return device.before[1], spread, (value - device.before[1]) / spread


def flatline(device, time, value, in_order):
    if not in_order:
        return None
    # The run is found by walking forward: a reading that does not fit begins the next one.
    run = []
    for t, v in device.kept + [(time, value)]:
        held = [w for _, w in run] + [v]
        run = run + [(t, v)] if max(held) - min(held) <= FLAT_TOLERANCE else [(t, v)]
    held = [v for _, v in run]
    share = min(len(run) / FLAT_WINDOW, (time - run[0][0]) / FLAT_FOR_US)
    return (max(held) + min(held)) / 2, FLAT_TOLERANCE, THRESHOLD * share


class Auto:
    """`auto`, from all that the device has taught: nothing is carried from row to row but the distances."""

    BULK, WIDTH, PRIOR, PRIOR_WEIGHT, MEMORY, LEVEL, LATELY, WARMUP, DAYS = 0.98, 0.05, 0.2, 2.0, 2000, 10, 300, 100, 7

    def __init__(self, name):
        self.__name__ = name
        self.times = {}
        self.found = {}  # by device: a list of (distance, least distance, level, least level, surprise)

    def expected(self, kept, time):
        values = numpy.array([v for _, v in kept])
        hours = numpy.array([t // HOUR_US for t, _ in kept])
        same = hours % 24 == time // HOUR_US % 24
        past, days, today = 0.0, 0, None
        for hour in dict.fromkeys(hours[same]):  # in the order of the visits
            mean = values[same & (hours == hour)].mean()
            if hour == time // HOUR_US:
                today = mean
            else:
                days = min(days + 1, self.DAYS)
                past += (mean - past) / days
        parts = [values.mean()] + [past] * days + ([] if today is None else [today])
        return float(numpy.mean(parts))

    def surprise(self, earlier, distance, least):
        """`earlier`: distances with their floors, the oldest first."""
        if not earlier:
            return 0.0
        keep = 1.0 - 1.0 / self.MEMORY
        weights = keep ** numpy.arange(len(earlier))[::-1]
        bins = numpy.array([math.floor(math.log(max(d, f)) / self.WIDTH) for d, f in earlier])
        rare = weights.sum() * (1.0 - self.BULK)
        above = excess = 0.0
        for number in sorted(set(bins), reverse=True):
            weight = weights[bins == number].sum()
            if above + weight >= rare:
                share = (rare - above) / weight
                quantile = self.WIDTH * (number + 1.0 - share)
                excess += (rare - above) * self.WIDTH * (number + 1.0 - share / 2.0)
                break
            above += weight
            excess += weight * self.WIDTH * (number + 0.5)
        seen = max(0.0, excess / rare - quantile)
        # The weights of the oldest first: the next distance would weigh one over `keep` as much as the newest.
        count = rare * keep
        mean = (seen * count + self.PRIOR * self.PRIOR_WEIGHT) / (count + self.PRIOR_WEIGHT)
        beyond = math.log(max(distance, least)) - max(quantile, math.log(least))
        return beyond / mean - math.log(1.0 - self.BULK) if beyond > 0.0 else 0.0

    def __call__(self, device, time, value, in_order):
        if time is None or not device.kept:
            return None
        earlier = self.found.setdefault(id(device), [])
        self.times.setdefault(id(device), [])
        expected = self.expected(device.kept, time)
        least = max(FLOOR, SPREAD_MIN)
        distance = value - expected
        level = float(numpy.mean([d for d, *_ in earlier[-(self.LEVEL - 1) :]] + [distance]))
        least_level = least / math.sqrt(self.LEVEL)
        of_reading = self.surprise([(abs(d), f) for d, f, *_ in earlier], abs(distance), least)
        of_level = self.surprise([(abs(m), f) for _, _, m, f, _ in earlier], abs(level), least_level)
        surprise = max(of_reading, of_level)
        is_warm = len(device.kept) >= self.WARMUP
        lately = [s for *_, s in earlier[-self.LATELY :]]
        lately += [s for t, (*_, s) in zip(self.times[id(device)], earlier) if 0 <= time - t <= 24 * HOUR_US]
        if in_order:
            self.times[id(device)].append(time)
            earlier.append((distance, least, level, least_level, surprise if is_warm else 0.0))
        if not is_warm:
            return None
        signed, floor = (level, least_level) if of_level > of_reading else (distance, least)
        if surprise <= 0.0 or any(s >= surprise for s in lately):
            return expected, floor, 0.0
        score = float(scipy.stats.norm.isf(math.exp(-surprise) / 2.0))
        return expected, abs(signed) / score, math.copysign(score, signed)


def readings(random, step_us, count):
    """(device, time, value) with everything in it that a fleet sends."""
    level = {"a": 20.0, "b": 1e6, "c": -3.0}
    stuck = {}
    time = 1_700_000_000_000_000
    rows = []
    for _ in range(count):
        time += int(step_us * random.choice([1, 1, 1, 1, 0.3, 7]))
        device = random.choice(["a", "b", "c"])
        chance = random.integers(0, 60)
        if chance == 0:
            level[device] += random.choice([-12.0, 12.0])
        value = level[device] + 2.0 * math.sin(time / HOUR_US / 24 * 2 * math.pi) + random.normal(0, 0.3)
        value += random.choice([-25.0, 25.0]) if chance in (1, 2) else 0.0
        if chance == 3:
            stuck[device] = (value, 12)
        if device in stuck:
            held, left = stuck[device]
            value = held + random.uniform(-0.1, 0.1)
            stuck[device] = (held, left - 1)
            if left == 1:
                del stuck[device]
        when = time
        if chance == 4:
            when = time - int(step_us * random.integers(3, 40))  # late
        if chance == 5:
            when = None
        rows.append((device, when, value))
        if chance in (6, 7):
            rows.append((device, when, value))  # repeated
    return rows


def measured(rows, measure, warmup, keeps_out=True, bucketed=False):
    devices = {}
    for name, time, value in rows:
        device = devices.setdefault(name, Device())
        if not hasattr(device, "rates"):
            device.rates = []
        in_order = device.is_in_order(time, warmup)
        found = measure(device, time, value, in_order)
        yield name, time, value, found
        if not in_order:
            continue
        rate_now = None
        if device.before is not None and time > device.before[0]:
            rate_now = (value - device.before[1]) / ((time - device.before[0]) / 1e6)
        device.before = (time, value)
        if keeps_out and found is not None and abs(found[2]) >= THRESHOLD:
            device.strikes += 2
            if device.strikes < 2 * RELEARN_AFTER:
                continue
            device.strikes = 0
            if bucketed:
                device.kept = [(t, v) for t, v in device.kept if t // HOUR_US % 24 != time // HOUR_US % 24]
            else:
                device.kept = []
            device.rates = []
        else:
            device.strikes = max(0, device.strikes - 1)
        device.kept.append((time, value))
        if rate_now is not None:
            device.rates.append(rate_now)


def main():
    folder = pathlib.Path(__file__).parent / "oracle"
    folder.mkdir(exist_ok=True)
    minute = 60_000_000
    methods = [
        (zscore, minute, 500, WARMUP, {}),
        (ewma, minute, 500, WARMUP, {}),
        (robust, minute, 500, WARMUP, {}),
        (seasonal, 8 * minute, 1200, SEASONAL_WARMUP, {"bucketed": True}),
        (rate, minute, 500, WARMUP, {}),
        (rate_limit, minute, 500, WARMUP, {}),
        (flatline, 3 * minute, 500, 5, {"keeps_out": False}),
    ]
    # Days of a few readings each, for what is expected; and readings enough a day for what is said only once.
    methods.append((Auto("auto_days"), 20 * minute, 1800, 20, {"keeps_out": False}))
    methods.append((Auto("auto_readings"), 0.6 * minute, 2200, 20, {"keeps_out": False}))
    for seed, (measure, step_us, count, warmup, settings) in enumerate(methods):
        random = numpy.random.default_rng(seed)
        rows = readings(random, step_us, count)
        with open(folder / f"{measure.__name__}.csv", "w") as out:
            out.write("device,time_us,value,expected,spread,score\n")
            for name, time, value, found in measured(rows, measure, warmup, **settings):
                numbers = ["", "", ""] if found is None else [repr(float(n)) for n in found]
                out.write(",".join([name, "" if time is None else str(time), repr(float(value)), *numbers]) + "\n")


if __name__ == "__main__":
    main()
