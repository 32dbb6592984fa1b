"""Names that the mount and the commands share."""

FS_TYPE = b"fuse.memfs"

USER_XATTRS = b"user."
"""xattr(7): the one namespace in which memfs has names."""

XATTR_PREFIX = b"user.memfs."

SNAPSHOT_XATTR = b"user.memfs.snapshot"
"""On a snapshot and all that is in it, unlisted: a name for it that no other snapshot ever has."""

SINCE_NAME = b".since"
"""In a snapshot, unlisted: a directory with a file for each earlier snapshot, of what changed since."""
