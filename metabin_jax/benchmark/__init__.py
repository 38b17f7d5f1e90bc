"""The benchmarks people publish on: protocols as data, splits as files, intervals and tables.

Knows records, features and numbers, and no model.
"""
