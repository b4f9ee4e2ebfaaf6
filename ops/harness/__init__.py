"""The harness of `outrider up`, the benchmarks, the chaos runs and the tests: processes, ports, brokers, databases."""
