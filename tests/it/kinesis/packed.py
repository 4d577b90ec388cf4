"""The format of packed records, by AWS's own Python library: packs records for us, and takes ours apart.

    packed.py pack       reads records a line {"key": ..., "data": base64}; writes packed records likewise
    packed.py unpack     the other way
"""
import base64
import json
import sys

from aws_kinesis_agg.aggregator import RecordAggregator
from aws_kinesis_agg.deaggregator import deaggregate_records


def lines():
    return [json.loads(line) for line in sys.stdin]


def write(key, data):
    print(json.dumps({"key": key, "data": base64.b64encode(data).decode()}))


def pack():
    aggregator = RecordAggregator(20_000)
    for record in lines():
        full = aggregator.add_user_record(record["key"], base64.b64decode(record["data"]))
        if full:
            key, _, data = full.get_contents()
            write(key, data)
    rest = aggregator.clear_and_get()
    if rest:
        key, _, data = rest.get_contents()
        write(key, data)


def unpack():
    for number, record in enumerate(lines()):
        event = {"kinesis": {"data": record["data"], "partitionKey": record["key"], "sequenceNumber": str(number),
                             "kinesisSchemaVersion": "1.0", "approximateArrivalTimestamp": 0}}
        for found in deaggregate_records([event]):
            write(found["kinesis"]["partitionKey"], base64.b64decode(found["kinesis"]["data"]))


{"pack": pack, "unpack": unpack}[sys.argv[1]]()
