"""The job engine: vocabulary, SQL and loops shared by web, relay and worker. Imports none of them."""
