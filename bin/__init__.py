"""Doors to the command line, runnable as scripts and importable from a notebook."""
