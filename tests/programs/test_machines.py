"""Programs with other programs in them: QEMU with a guest, Chromium with a page."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.request import urlopen

import pytest
from mount.mounted import check
from programs.lab import HERE, NOBODY, Lab, gdb, need, until


def _guest(directory: Path) -> Path:
    """The boot sector of ``guest.S``."""
    need("as", "ld")
    made, disk = directory / "guest.o", directory / "guest.img"
    check("as", "--32", "-o", made, HERE / "guest.S")
    check("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", disk, made)
    assert disk.stat().st_size == 512
    return disk


def test_qemu(lab: Lab) -> None:
    need("gdb", "qemu-system-x86_64")
    serial = lab.directory / "serial"
    argv = [
        "qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-mem-prealloc", "-nodefaults",
        "-display", "none", "-serial", f"file:{serial}",
        "-drive", f"file={_guest(lab.directory)},format=raw,snapshot=on",
    ]  # fmt: skip
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as qemu:
        try:
            until(lambda: serial.exists() and b"k" in serial.read_bytes(), "the guest")

            def goes_on() -> None:
                before = serial.stat().st_size
                until(lambda: serial.stat().st_size > before, "the guest's next sum")

            lab.examine("QEMU", qemu.pid, b"the plain text of guest.S, known", [gdb(qemu.pid)], goes_on)
            assert re.fullmatch(rb"rk+", serial.read_bytes())
        finally:
            qemu.terminate()
            _, errors = qemu.communicate()
    assert b"terminating on signal 15" in errors


_PAGE = """<!DOCTYPE html><title>begun</title><script>
const text = ['the plain text of the page is', 'known'].join(' ');
const numbers = Array.from({length: 300000}, (_, index) => ({index, name: `number ${index}`}));
function digest() {
    let sum = 0;
    for (const {index, name} of numbers)
        sum = (sum * 31 + index + name.charCodeAt(name.length - 1)) >>> 0;
    return sum;
}
const expected = digest();
let count = 0;
setInterval(() => {
    count++;
    if (digest() !== expected)
        document.title = 'wrong';
    else if (document.title !== 'wrong')
        document.title = `ok ${count} ${text.length}`;
}, 1);
</script>
"""


def _processes_of(user_directory: Path) -> dict[int, bytes]:
    """Chromium's processes, those that were given that directory, by number."""
    found = {}
    for path in Path("/proc").glob("[1-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            line = path.read_bytes()
            if os.fsencode(user_directory) in line:
                found[int(path.parent.name)] = line
    return found


def test_chromium(lab: Lab) -> None:
    need("gdb", "chromium")
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    (home / "page.html").write_text(_PAGE)
    for path in (home, home / "page.html"):
        os.chown(path, NOBODY, NOBODY)
    argv = [
        "chromium", "--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        f"--user-data-dir={home}/data", "--remote-debugging-port=0", f"file://{home}/page.html",
    ]  # fmt: skip
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home)}
    with (lab.directory / "chromium.log").open("wb") as log:
        chromium = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=home,
            user=NOBODY, group=NOBODY, extra_groups=[], start_new_session=True,
        )  # fmt: skip
        try:
            port_file = home / "data/DevToolsActivePort"
            until(
                lambda: chromium.poll() is not None or (port_file.exists() and port_file.read_text()),
                "Chromium",
            )
            if chromium.poll() is not None:
                pytest.skip(
                    f"Chromium does not run here: {(lab.directory / 'chromium.log').read_text()[-500:]}"
                )
            port = int(port_file.read_text().split()[0])

            def title() -> str:
                with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
                    return next(each["title"] for each in json.load(answer) if "page.html" in each["url"])

            def goes_on() -> None:
                before = title()
                until(lambda: title() != before, "the page's next digest")
                assert title().startswith("ok ")

            until(lambda: title().startswith("ok "), "the page")
            renderers = [pid for pid, line in _processes_of(home).items() if b"--type=renderer" in line]
            renderer = max(renderers, key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))
            plaintext = b"the plain text of the page is known"
            lab.examine("Chromium, the page's", renderer, plaintext, [gdb(renderer)], goes_on)
            lab.examine("Chromium, the browser", chromium.pid, b"page.html", [gdb(chromium.pid)], goes_on)
        finally:
            chromium.terminate()
            chromium.wait()
            until(lambda: not _processes_of(home), "the end of its processes")
            shutil.rmtree(home)
