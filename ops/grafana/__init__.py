"""The dashboards as code, one in each module. `python -m ops.grafana` writes them to JSON beside the modules."""
