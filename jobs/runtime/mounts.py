"""Gives this process and its children a directory as /opt/ml, and names of hosts, which no other process sees.

Linux lets root do so in a mount namespace, and most machines let any user in a user namespace of its own. Where /opt/ml
does not exist, /opt is covered by an empty file system that shows what /opt holds: the machine's own stays as it is.
"""

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

OPT, OPT_ML, HOSTS_FILE = "/opt", "/opt/ml", "/etc/hosts"
# Of <sched.h> and <sys/mount.h>.
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def enter(root: Path, hosts: Mapping[str, str], hosts_file: Path) -> None:
    """Show `root` as /opt/ml, and have each name of `hosts` lead to its address; `hosts_file` is written for that.

    The process may have no other thread. Raises OSError, and nothing has changed then.
    """
    if reason := unavailable(root):
        raise OSError(reason)
    _mount(root)
    if hosts:
        lines = [Path(HOSTS_FILE).read_text("utf-8", "replace"), *(f"{hosts[name]}\t{name}\n" for name in hosts)]
        hosts_file.write_text("\n".join(lines), "utf-8")
        _call("mount", str(hosts_file), HOSTS_FILE, None, MS_BIND, None)


def unavailable(root: Path) -> str | None:
    """Return why `enter` cannot do it on this machine, or None. Another process, which has no threads, tries."""
    if sys.platform != "linux":
        return f"{sys.platform} has no mount namespaces"
    if root.is_relative_to(OPT_ML):
        return f"{root} lies in it"
    if not os.path.isfile(HOSTS_FILE):
        return f"there is no {HOSTS_FILE}"
    status = subprocess.run([sys.executable, "-IS", __file__, root], stdin=subprocess.DEVNULL).returncode
    return os.strerror(status) if status > 0 else f"killed by signal {-status}" if status else None


def _mount(root: Path) -> None:
    _unshare()
    _call("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    if not os.path.isdir(OPT_ML):
        _cover_opt()
    _call("mount", str(root), OPT_ML, None, MS_BIND | MS_REC, None)


def _unshare() -> None:
    """Leave the others' mount namespace: as root, or in a user namespace of our own in which we stay who we are."""
    try:
        _call("unshare", CLONE_NEWNS)
    except PermissionError:
        ids = {"uid_map": os.geteuid(), "gid_map": os.getegid()}
        _call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        for name, number in ids.items():
            Path("/proc/self", name).write_text(f"{number} {number} 1")


def _cover_opt() -> None:
    """Cover /opt by a file system in memory that has what /opt holds, and a directory ml."""
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(OPT)  # what is covered can be named from here
    _call("mount", "tmpfs", OPT, "tmpfs", 0, "mode=755")
    os.mkdir(OPT_ML)
    for entry in os.scandir("."):
        covered = Path(OPT, entry.name)
        if entry.is_symlink():
            covered.symlink_to(os.readlink(entry.name))
            continue
        covered.mkdir() if entry.is_dir() else covered.touch()
        _call("mount", entry.name, str(covered), None, MS_BIND | MS_REC, None)
    os.fchdir(before)
    os.close(before)


def _call(name: str, *arguments: str | int | None) -> None:
    """Call a function of the C library. Raises OSError."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    words = [os.fsencode(word) if isinstance(word, str) else word for word in arguments]
    # Flags are unsigned long: an int alone would be passed as 32 bits.
    if function(*[ctypes.c_ulong(word) if isinstance(word, int) else word for word in words]):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    try:
        _mount(Path(sys.argv[1]))
    except OSError as error:
        sys.exit(error.errno or errno.EIO)
