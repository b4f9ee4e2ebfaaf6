"""What `outrider up`, the benchmarks, the chaos runs and the tests share: processes, ports, brokers, databases."""
