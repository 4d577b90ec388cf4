#!/usr/bin/env python3
"""Readings as gzip JSON lines, so many bytes of them, and the same rows as COPY has them as text.

    generate.py FOLDER GZIP_BYTES COPY_ROWS_MAX

Writes FOLDER/raw/NNNNN.jsonl.gz, each of 16 MiB of gzip, and FOLDER/rows.tsv with the first COPY_ROWS_MAX rows. Prints the
number of rows, of those in rows.tsv, and of bytes before packing. The same arguments give the same files.
"""

import datetime
import gzip
import pathlib
import random
import sys

OBJECT_BYTES = 16 << 20
DEVICES = 1_000
# A reading a second of each device, from the start of 2026 on.
START_S = 1_767_225_600
CHUNK_ROWS = 10_000


def rows():
    """Device, second, millisecond, temperature in hundredths, humidity in tenths, number.

    Each device walks at random, and sends at its own time of a second, more or less.
    """
    chance = random.Random(1)
    temperature = [2_000 + chance.randrange(1_000) for _ in range(DEVICES)]
    humidity = [500] * DEVICES
    phase = [chance.randrange(900) for _ in range(DEVICES)]
    number = 0
    while True:
        for device in range(DEVICES):
            temperature[device] += chance.randrange(-9, 10)
            humidity[device] = min(990, max(10, humidity[device] + chance.randrange(-3, 4)))
            millisecond = phase[device] + chance.randrange(100)
            yield device, START_S + number, millisecond, temperature[device], humidity[device], number
        number += 1


def times():
    """A second as text, made once for all devices."""
    last, text = None, None
    def of(second):
        nonlocal last, text
        if second != last:
            moment = datetime.datetime.fromtimestamp(second, datetime.timezone.utc)
            last, text = second, moment.strftime("%Y-%m-%dT%H:%M:%S")
        return text

    return of


def main():
    folder, gzip_bytes, copy_rows_max = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (folder / "raw").mkdir(parents=True)
    source, time = rows(), times()
    written = count = copied = plain = number = 0
    with open(folder / "rows.tsv", "w") as tsv:
        while written < gzip_bytes:
            path = folder / "raw" / f"{number:05}.jsonl.gz"
            limit = min(OBJECT_BYTES, gzip_bytes - written)
            with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed:
                while raw.tell() < limit:
                    lines = []
                    for _ in range(CHUNK_ROWS):
                        device, second, millisecond, temperature, humidity, seq = next(source)
                        at, t, h = f"{time(second)}.{millisecond:03}Z", temperature / 100, humidity / 10
                        lines.append(
                            f'{{"device_id":"device-{device}","timestamp":"{at}","temperature":{t},"humidity":{h},"seq":{seq}}}\n'
                        )
                        if copied < copy_rows_max:
                            tsv.write(f"device-{device}\t{at}\t{t}\t{h}\t{seq}\n")
                            copied += 1
                    text = "".join(lines).encode()
                    packed.write(text)
                    plain += len(text)
                    count += CHUNK_ROWS
            written += path.stat().st_size
            number += 1
    print(count, copied, plain)


main()
