"""What a core file tells of a process as a whole."""

from memfs.errors import TargetExited
from memfs.linux import procfs
from memfs.linux.inside import read_inside
from memfs.linux.stat import read_stat
from memfs.target.identity import Identity, read_text
from memfs.target.process import AddressSpace
from memfs.target.record import ProcessRecord


def read_process(space: AddressSpace, identity: Identity) -> ProcessRecord:
    """Read it before the stop: it does not change."""
    pid = identity.pid
    try:
        stat = read_stat(pid)
        inside = read_inside(pid)
        arguments, auxv = read_text(pid, "cmdline"), read_text(pid, "auxv")
        # Only there, but below the number of any thread (proc_pid_lookup of fs/proc/base.c).
        core_filter = procfs.read_file(f"/proc/{space.objects_pid}/coredump_filter")
    except (FileNotFoundError, ProcessLookupError):
        raise TargetExited(f"process {pid} has ended") from None
    space.ensure_same_program()
    return ProcessRecord(
        pid=inside.pid,
        parent=inside.parent,
        group=inside.group,
        session=inside.session,
        uid=inside.uid,
        gid=inside.gid,
        state=stat.state,
        nice=stat.nice,
        flags=stat.flags,
        comm=stat.comm,
        arguments=arguments,
        auxv=auxv,
        core_filter=int(core_filter or b"0", 16),
    )
