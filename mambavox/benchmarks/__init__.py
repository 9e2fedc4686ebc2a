"""The operations beside their peers on this machine: parity first, then time, memory and the machine's limit.

``mambavox.benchmarks.benchmark.benchmark`` runs one of ``mambavox.benchmarks.registry.OPERATIONS``.
"""
