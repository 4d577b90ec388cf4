"""The zone of each position, found again with shapely (GEOS), one position and one zone at a time.

Usage: geofence.py ZONES.geojson POSITIONS.jsonl OURS.jsonl CONFIG.json

Ends with an error where another zone, or none, was found for a position.
"""

import json
import sys

import numpy as np
import shapely
from shapely.geometry import Point, shape
from shapely.prepared import prep

zones = [(feature["properties"]["name"], shape(feature["geometry"])) for feature in json.load(open(sys.argv[1]))["features"]]
positions, ours = ([json.loads(line) for line in open(path)] for path in sys.argv[2:4])
overlap = json.load(open(sys.argv[4]))["overlap"]
assert len(positions) == len(ours) and all(zone.is_valid for _, zone in zones)


def on_the_ground(zone):
    """The area to seven digits, on a map that keeps areas (Lambert's cylindrical one)."""
    equal_area = shapely.transform(zone, lambda corners: np.column_stack([corners[:, 0], np.sin(np.radians(corners[:, 1]))]))
    return float(f"{equal_area.area:.6e}")


prepared = [(name, on_the_ground(zone), prep(zone)) for name, zone in zones]
if overlap == "smallest":
    # Stable: of zones of one size, the first.
    prepared.sort(key=lambda zone: zone[1])

inside = 0
for position, mine in zip(positions, ours):
    at = Point(position["longitude"], position["latitude"])
    # On the border is inside.
    theirs = next((name for name, _, zone in prepared if zone.covers(at)), None)
    assert mine["zone"] == theirs, f"at {at}: {mine['zone']} and not {theirs}"
    inside += theirs is not None
# Otherwise nothing was held against anything.
assert 0 < inside < len(ours)
