#!/usr/bin/env bash
# Sends dashboards to a running Grafana, in place of what has their uid there.
#
#     GRAFANA_TOKEN=... ops/grafana/import_all.sh [FILE...]
#
# GRAFANA_URL    http://localhost:3000 if not set
# GRAFANA_TOKEN  of a service account that may edit dashboards (https://grafana.com/docs/grafana/latest/administration/service-accounts/)
#
# A file holds a dashboard as Grafana exports it, or what its API gives ({"dashboard": …}): the API itself takes only the
# latter, and refuses an id that is not its own. Without a FILE: the dashboards beside this script.
set -euo pipefail

: "${GRAFANA_TOKEN:?a token of a service account}"
url=${GRAFANA_URL:-http://localhost:3000}
if [[ $# -eq 0 ]]; then
  set -- "$(dirname -- "${BASH_SOURCE[0]}")"/dashboards/*.json
fi

failed=0
for file in "$@"; do
  body=$(python3 -c '
import json, sys
given = json.load(open(sys.argv[1]))
dashboard = given.get("dashboard", given)
dashboard["id"] = None
print(json.dumps({"dashboard": dashboard, "overwrite": True}))' "$file")
  # By a file descriptor, so that the token is in no list of processes.
  if curl --fail-with-body --silent --show-error --output /dev/null \
    --header @<(printf 'Authorization: Bearer %s\n' "$GRAFANA_TOKEN") \
    --header 'Content-Type: application/json' \
    --data-binary @- "$url/api/dashboards/db" <<<"$body"; then
    echo "$(basename -- "$file"): imported"
  else
    echo "$(basename -- "$file"): refused" >&2
    failed=1
  fi
done
exit "$failed"
