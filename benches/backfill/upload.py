#!/usr/bin/env python3
"""Makes a bucket and puts files into it, or takes them and the bucket away, by the S3 API and nothing but Python.

    upload.py BUCKET PREFIX FILE...
    upload.py --remove BUCKET PREFIX FILE...

Reads TEST_S3_ENDPOINT, TEST_S3_REGION, TEST_S3_ACCESS_KEY and TEST_S3_SECRET_KEY.
"""

import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import sys
import urllib.parse

ENDPOINT = urllib.parse.urlsplit(os.environ["TEST_S3_ENDPOINT"])
REGION = os.environ["TEST_S3_REGION"]


def ask(method, path, body=b""):
    """One request, signed by version 4 of AWS's signatures."""
    now = datetime.datetime.now(datetime.timezone.utc)
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    content = hashlib.sha256(body).hexdigest()
    signed = {"host": ENDPOINT.netloc, "x-amz-content-sha256": content, "x-amz-date": moment}
    names = ";".join(signed)
    headers = "".join(f"{name}:{value}\n" for name, value in signed.items())
    request = f"{method}\n{path}\n\n{headers}\n{names}\n{content}"
    scope = f"{day}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = ("AWS4" + os.environ["TEST_S3_SECRET_KEY"]).encode()
    for part in (day, REGION, "s3", "aws4_request", text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"{os.environ['TEST_S3_ACCESS_KEY']}/{scope}"
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={key.hex()}"
    )
    connection = http.client.HTTPConnection(ENDPOINT.netloc)
    connection.request(method, path, body, signed)
    answer = connection.getresponse()
    if answer.status not in (200, 204):
        sys.exit(f"{method} {path}: {answer.status} {answer.read().decode()}")
    connection.close()


def main():
    removes = sys.argv[1] == "--remove"
    bucket, prefix, *files = sys.argv[2 if removes else 1 :]
    if not removes:
        ask("PUT", f"/{bucket}")
    for file in map(pathlib.Path, files):
        path = f"/{bucket}/{prefix}{file.name}"
        ask("DELETE", path) if removes else ask("PUT", path, file.read_bytes())
    if removes:
        ask("DELETE", f"/{bucket}")


main()
