"""memfs: the memory of every process, mounted as files."""

__version__ = "0.1.0"
