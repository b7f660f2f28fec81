#!/usr/bin/env python3
"""Run a bundle on another host over ssh and bring its trace back.

    python hil_run.py --host HOST BUNDLE TRACE.npz [--python "WORDS"] [--ssh "WORDS"]
                      [--folder DIR] [--images FILE.npz] [--limit N] [--network raw|netx]
                      [--run-config hardware|sim] [--timeout SECONDS]

Needs Python 3.10 or later and ssh here; sh, tar and an environment for run_lava.py (with Intel's
lava-loihi for a board) there. Nothing else is installed or changed on the host: the files that
run_lava.py reads are copied to DIR/<name>-<hash of the manifest>, once per bundle, and every run
has a folder of its own in DIR, which is removed in the end.

When this program is ended, so is the run on the host: it notices that its standard input closed.

Exit codes: those of run_lava.py (0 done; 1 Lava failed; 2 the bundle or the images are not
usable; 5 Lava or lava-loihi is not installed); 2 also for bad arguments and for a trace that
cannot be written here, 5 also when the host cannot be reached or used or the time is over.
"""

import argparse
import contextlib
import hashlib
import os
import posixpath
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from pathlib import Path

SSH_FAILED = 255  # the status with which ssh speaks for itself, not for the remote command
UNUSABLE = 5  # the exit code for a host that cannot be used

# Runs run_lava.py on the host, and ends its process group once our end of the standard input is
# closed, that is when this program or the connection is gone. It reads the bare descriptor: Lava
# forks, and a Python stream would pass on a held lock.
_START = """
import os, runpy, signal, sys, threading
if os.getpgrp() != os.getpid():
    os.setpgid(0, 0)  # a group of our own: the shell that started us is not meant
def watch():
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class HostError(Exception):
    """A step failed; `status` is the exit code of this program."""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


class Host:
    """Commands on a host. Every word is quoted for the host's shell, so any path will do."""

    def __init__(self, ssh, name, deadline):
        self.prefix = [*ssh, "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", name]
        self.name = name
        self.deadline = deadline

    def run(self, script, what, stdin=None, stdout=None):
        """Run a line of sh; HostError unless its status is 0."""
        status = self.status(script, what, stdin, stdout)
        if status:
            raise HostError(f"{self.name}: {what} failed with status {status}", UNUSABLE)

    def status(self, script, what, stdin=None, stdout=None):
        """Run a line of sh and return its status; ssh's own failure and time-out are HostError."""
        # Without a file to send, an open pipe: its end tells the host that we are gone.
        given = subprocess.PIPE if stdin is None else stdin
        process = subprocess.Popen([*self.prefix, script], stdin=given, stdout=stdout)
        try:
            status = process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise HostError(f"{self.name}: {what}: out of time", UNUSABLE) from None
        finally:
            end(process)
        if status == SSH_FAILED:
            raise HostError(f"{self.name}: {what}: ssh failed (see above)", UNUSABLE)
        return status


def end(process):
    """Close the pipe, so that the host ends its part, and end ssh."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
        return
    process.kill()
    process.wait()


def needed(bundle):
    """Return the files of a bundle that run_lava.py reads."""
    files = [bundle / name for name in ("manifest.json", "run_lava.py", "golden.npz")]
    files += sorted((bundle / "loihi").glob("network.*"))
    for path in files:
        if not path.is_file():
            raise HostError(f"{path}: no such file; expected a bundle with target loihi", 2)
    if len(files) < 5:
        raise HostError(f"{bundle / 'loihi'}: expected network.json and network.npz", 2)
    return files


def copy_bundle(host, bundle, folder):
    """Copy what is needed to `folder` on the host, as a whole or not at all, unless it is there."""
    ready = shlex.quote(posixpath.join(folder, "manifest.json"))
    if host.status(f"test -f {ready}", "looking for the bundle") == 0:
        return
    part = shlex.quote(f"{folder}.{uuid.uuid4().hex}.part")
    final = shlex.quote(folder)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path in needed(bundle):
                archive.add(path, path.relative_to(bundle).as_posix())
        packed.seek(0)
        unpack = f"mkdir -p {part} && tar -xf - -C {part}"
        # Two runs may copy at once: whoever comes second finds the folder and drops its own.
        finish = f"(mv -T {part} {final} 2>/dev/null || (rm -rf {part} && test -f {ready}))"
        host.run(f"{unpack} && {finish}", "copying the bundle", stdin=packed)


def run_lava(host, options, folder, work):
    """Run run_lava.py on the host; its trace is then WORK/trace.npz there."""
    trace = posixpath.join(work, "trace.npz")
    words = [*options.python, "-c", _START, posixpath.join(folder, "run_lava.py"), folder, trace]
    words += ["--run-config", options.run_config, "--network", options.network]
    if options.limit is not None:
        words += ["--limit", str(options.limit)]
    if options.images is not None:
        images = posixpath.join(work, "images.npz")
        with options.images.open("rb") as stream:
            host.run(f"cat > {shlex.quote(images)}", "sending the images", stdin=stream)
        words += ["--images", images]
    status = host.status(shlex.join(words), "run_lava.py", stdout=sys.stderr)
    if status:
        raise HostError(f"{host.name}: run_lava.py failed with status {status}", status)
    return trace


def fetch(host, trace, destination):
    """Bring the trace back under a temporary name first: a broken connection leaves no half one."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            host.run(f"cat {shlex.quote(trace)}", "fetching the trace", stdout=stream)
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def drive(options):
    """Copy, run, fetch, clean up."""
    host = Host(options.ssh, options.host, time.monotonic() + options.timeout)
    bundle = options.bundle.resolve()
    needed(bundle)
    content = (bundle / "manifest.json").read_bytes()
    name = f"{bundle.name}-{hashlib.sha256(content).hexdigest()[:16]}"
    folder = posixpath.join(options.folder, name)
    work = posixpath.join(options.folder, f"run-{uuid.uuid4().hex}")
    host.run(f"mkdir -p {shlex.quote(work)}", "making a folder")
    try:
        copy_bundle(host, bundle, folder)
        fetch(host, run_lava(host, options, folder, work), options.trace)
    finally:
        host.deadline = max(host.deadline, time.monotonic() + 30)
        with contextlib.suppress(HostError):
            host.run(f"rm -rf {shlex.quote(work)}", "cleaning up")


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--host", required=True, help="HOST or USER@HOST, as ssh takes it")
    parser.add_argument(
        "--python", type=shlex.split, default=["python3"],
        help='what runs Python on the host, such as "env NAME=VALUE /opt/lava/bin/python"',
    )  # fmt: skip
    parser.add_argument("--ssh", type=shlex.split, default=["ssh"], help='such as "ssh -p 2222"')
    parser.add_argument(
        "--folder", default="stars-deploy-hil", help="on the host; from the home folder if relative"
    )
    parser.add_argument("--images", type=Path, help="an npz with `images`; default: golden images")
    parser.add_argument("--limit", type=int, help="the first N images")
    parser.add_argument("--network", choices=("raw", "netx"), default="raw")
    parser.add_argument("--run-config", choices=("sim", "hardware"), default="hardware")
    parser.add_argument("--timeout", type=float, default=86400.0, help="seconds for everything")
    options = parser.parse_args()
    if options.host.startswith("-") or not options.host:
        parser.error(f"--host {options.host!r}: expected a host name")
    for name in ("python", "ssh", "folder"):
        if not getattr(options, name) or str(getattr(options, name)).startswith("-"):
            parser.error(f"--{name}: expected at least one word that is no option")
    return options


def main():
    """Run the command line; return the exit code."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up
    try:
        drive(options)
    except HostError as problem:
        print(f"hil_run: {problem}", file=sys.stderr)
        return problem.status
    except OSError as problem:
        print(f"hil_run: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
