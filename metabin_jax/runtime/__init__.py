"""The machine below: devices, platforms, compiled programs, files, and the log that a run writes.

Nothing here knows what re-identification is.
"""
