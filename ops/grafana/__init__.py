"""The dashboards as code: one a module, written to JSON beside it by `python -m ops.grafana`."""
