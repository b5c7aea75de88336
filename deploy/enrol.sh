#!/bin/sh
# For compose: once, register two approvers, make the policies active, and hand out the tokens of node and sidecar.
set -eu
field() { python -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }
once() { # FILE FIELD COMMAND...
  file=$1 field=$2
  shift 2
  [ -s "$file" ] || { "$@" --json >"$file.json" && field "$field" <"$file.json" >"$file" && rm "$file.json"; }
}
until licet people list >/dev/null 2>&1; do sleep 1; done
for name in approver-1 approver-2; do
  once "/people/$name.token" token licet people register "$name" --role operations --role finance
done
once /enrol/node.token enrolment_token licet nodes register node-1 --server workbench --url http://node:7420
once /enrol/agent.token enrolment_token licet agents register demo --owner ada --purpose "try Licet" --team demo
licet policy status | grep -q "no bundle is active" && licet policy activate
echo "enrolled; the approvers' tokens are in the volume people"
