"""The project's own measurements: CPU time for each event, of the transport beside its peers and of the path.

Imported by the `bench` commands alone. Each peer runs in a process of its own (`peers.py`).
"""
