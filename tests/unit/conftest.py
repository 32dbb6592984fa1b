"""Unit tests run on a machine that others use too: no example has a deadline."""

from hypothesis import settings

settings.register_profile("memfs", deadline=None)
settings.load_profile("memfs")
