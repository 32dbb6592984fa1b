"""What gdb sees of a program, as JSON. Runs inside gdb: ``gdb -batch -x gdb_view.py`` on a core or a process.

It writes to the file that the environment names as GDB_VIEW: of each thread, by its number, the frames from
the inside out with the value of each local variable, and every register; then the values of the expressions
that GDB_EXPRESSIONS names, a line each.
"""

import json
import os

import gdb  # type: ignore[import-not-found]


def _locals(frame):
    found = {}
    try:
        block = frame.block()
    except RuntimeError:  # no symbols
        return found
    while block is not None and not block.is_static:
        for symbol in block:
            if symbol.is_variable or symbol.is_argument:
                found[symbol.name] = str(symbol.value(frame))
        if block.function is not None:
            break
        block = block.superblock
    return found


def _frames(frame):
    while frame is not None:
        where = frame.find_sal()
        yield {"function": frame.name(), "pc": frame.pc(), "line": where.line, "locals": _locals(frame)}
        frame = frame.older()


def _registers(frame):
    # gdb's own list has only the widest vectors that the processor may have, and not all that is special.
    names = [each.name for each in frame.architecture().registers()]
    names += ["orig_rax", "fs_base", "gs_base"]
    names += [f"{kind}{number}" for kind in ("xmm", "ymm") for number in range(16)]
    return {name: str(gdb.parse_and_eval(f"${name}")) for name in names}


def _threads():
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        frame = gdb.newest_frame()
        yield thread.ptid[1], {"frames": list(_frames(frame)), "registers": _registers(frame)}


with open(os.environ["GDB_VIEW"], "w") as file:
    expressions = os.environ["GDB_EXPRESSIONS"].splitlines()
    view = {
        "threads": dict(_threads()),
        "values": {text: str(gdb.parse_and_eval(text)) for text in expressions},
    }
    json.dump(view, file)
