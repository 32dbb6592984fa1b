"""Which kinds of mapping the tests of content go through."""

CONTENT_KINDS = (
    "private-runs", "private-full", "zero-read", "shared-anon", "shared-anon-other", "shared-anon-gone",
    "system-v", "memfd-shared", "memfd-private", "memfd-odd-name", "dev-zero-private", "file-private",
    "file-shared", "file-odd-names", "file-deleted", "none-data", "write-only", "exec-only", "thp",
)  # fmt: skip
"""Every kind whose mappings can be read from their first byte to their last."""
