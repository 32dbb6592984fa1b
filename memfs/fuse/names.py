"""Names that the mount and the commands share."""

FS_TYPE = b"fuse.memfs"

XATTR_PREFIX = b"user.memfs."

DAEMON_XATTR = b"user.memfs.daemon"
"""On the root of a mount: the pid of its daemon."""
