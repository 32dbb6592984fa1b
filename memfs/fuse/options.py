"""What ``-o`` may say, parsed once into a value."""

import enum
import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from memfs.errors import BadOption
from memfs.snapshot.values import DEFAULT_COPY_BYTES


class SpliceMode(enum.Enum):
    """How a READ's reply is put together."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@attrs.frozen
class MountOptions:
    """The options of one mount.

    Attributes:
        log_file: where the daemon logs; None for syslog, or stderr in the foreground.
        low_latency: whether CPUs may be kept from sleeping while reads flow.
        passthrough: whether the kernel may read shared memory by itself.
        snapshot_copy_bytes: the most that is copied while a process is stopped for a snapshot.
        snapshot_memory_bytes: the most memory that a snapshot's copies may take that are made while the
            process runs; None for a share of what there is.
        snapshot_fallback: whether a process that cannot be forked may be copied as a whole.
        full_cores: whether core files have all that can be read, whatever the process asks for.
    """

    splice: SpliceMode = SpliceMode.AUTO
    log_file: Path | None = None
    low_latency: bool = True
    passthrough: bool = True
    snapshot_copy_bytes: int = DEFAULT_COPY_BYTES
    snapshot_memory_bytes: int | None = None
    snapshot_fallback: bool = False
    full_cores: bool = False


_ALLOW_OTHER = (
    "-o allow_other is refused: every user would read through the daemon with the daemon's rights",
    "let each user mount for himself, access is not decided for each caller yet",
)


def parse_options(texts: Iterable[str]) -> MountOptions:
    """The options of all ``-o`` arguments, each a list with commas.

    Raises:
        BadOption: an option is unknown, has a bad value, or contradicts another.
    """
    values: dict[str, str] = {}
    for option in (part for text in texts for part in text.split(",") if part):
        name, equals, value = option.partition("=")
        if name in ("allow_other", "allow_root"):
            raise BadOption(_ALLOW_OTHER[0].replace("allow_other", name), _ALLOW_OTHER[1])
        if name not in _CHOICES:
            known = ", ".join(sorted(_USAGE))
            raise BadOption(f"unknown option {option!r}", f"the options are {known}")
        choices = _CHOICES[name]
        if not equals or not value or (choices and value not in choices):
            raise BadOption(f"bad option {option!r}", f"write {_USAGE_BY_NAME[name]}")
        if values.setdefault(name, value) != value:
            raise BadOption(
                f"{name}={values[name]} and {name}={value} contradict each other", "give one of them"
            )
    log_file = Path(values["log"]).absolute() if "log" in values else None
    sizes = {name: _parse_size(name, values[name]) for name in _SIZES if name in values}
    return MountOptions(
        splice=SpliceMode(values.get("splice", SpliceMode.AUTO.value)),
        log_file=log_file,
        low_latency=values.get("low_latency", "auto") == "auto",
        passthrough=values.get("passthrough", "auto") == "auto",
        snapshot_copy_bytes=sizes.get("snapshot_copy", DEFAULT_COPY_BYTES),
        snapshot_memory_bytes=sizes.get("snapshot_memory"),
        snapshot_fallback=values.get("snapshot_fallback") == "copy",
        full_cores=values.get("core") == "full",
    )


_SIZE = re.compile(r"(\d{1,15})([KMGT]?)")
_SIZES = ("snapshot_copy", "snapshot_memory")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _parse_size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise BadOption(
            f"bad option '{name}={text}'", f"write {name}=SIZE, a number of bytes or 64K, 64M, 1G"
        )
    return int(match[1]) * _UNITS[match[2]]


_CHOICES: dict[str, tuple[str, ...]] = {
    "splice": tuple(mode.value for mode in SpliceMode),
    "low_latency": ("auto", "off"),
    "passthrough": ("auto", "off"),
    "log": (),
    "snapshot_copy": (),
    "snapshot_memory": (),
    "snapshot_fallback": ("copy", "off"),
    "core": ("full", "filtered"),
}
_USAGE_BY_NAME = {
    "splice": "splice=auto|on|off",
    "low_latency": "low_latency=auto|off",
    "passthrough": "passthrough=auto|off",
    "log": "log=FILE",
    "snapshot_copy": "snapshot_copy=SIZE",
    "snapshot_memory": "snapshot_memory=SIZE",
    "snapshot_fallback": "snapshot_fallback=copy|off",
    "core": "core=full|filtered",
}
_USAGE = tuple(_USAGE_BY_NAME.values())
