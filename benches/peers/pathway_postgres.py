"""The job of the load harness done with Pathway (https://pathway.com): readings, by MQTT or from a file, checked and stored.

    python -m venv ../peers && ../peers/bin/pip install pathway==0.33.0 'psycopg[binary]'
    cargo bench --bench load -- --only drain --peer 'drain:../peers/bin/python benches/peers/pathway_postgres.py'
    cargo bench --bench load -- --only file --peer 'file:../peers/bin/python benches/peers/pathway_postgres.py'
"""

import logging
import os
from urllib.parse import urlparse

import pathway as pw
import psycopg

TABLE = "load_peer"


class Reading(pw.Schema):
    device_id: str
    timestamp: str
    temperature: float
    humidity: float
    seq: int


# It tells of each acknowledgement and of each bad reading, which would be measured too.
logging.disable(logging.ERROR)
database = os.environ["DATABASE_URL"]
with psycopg.connect(database) as connection:
    # What it says of each change: when it saw it, and that it is one more row.
    connection.execute(f"ALTER TABLE {TABLE} ADD COLUMN time bigint, ADD COLUMN diff bigint")

if "READINGS" in os.environ:
    readings = pw.io.jsonlines.read(os.environ["READINGS"], schema=Reading, mode="static")
else:
    # A session that is there already, with what waits in it.
    broker = os.environ["MQTT_URL"] + "?client_id=load-peer&clean_session=false"
    readings = pw.io.mqtt.read(broker, "load/peer", qos=1, schema=Reading, format="json")
good = readings.filter((readings.humidity >= 0) & (readings.humidity <= 100))
# From MQTT it takes a time as text only.
good = good.with_columns(timestamp=pw.this.timestamp.dt.strptime("%Y-%m-%dT%H:%M:%S.%fZ").dt.to_utc("UTC"))

url = urlparse(database)
settings = {"host": url.hostname, "port": url.port, "user": url.username, "dbname": url.path.lstrip("/")}
if url.password:
    settings["password"] = url.password
pw.io.postgres.write(good, settings, TABLE)
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
