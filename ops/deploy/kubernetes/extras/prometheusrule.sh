#!/bin/sh
# Prints the rules of ops/prometheus as the Prometheus operator takes them; links to runbooks begin with what is given:
# prometheusrule.sh https://git.example.com/outrider/blob/main/ | kubectl apply -f -
set -eu
cat <<'HEAD'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: outrider
  namespace: outrider
spec:
  groups:
HEAD
cd -- "$(dirname -- "$0")/../../../prometheus"
sed -e '/^groups:/d' -e "s|runbook_url: |&${1:-}|" -e 's/^./  &/' recording.yml alerts.yml
