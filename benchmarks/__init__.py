"""Benchmarks as programs: each row alone (python -m benchmarks.ingest) or all (make bench)."""
