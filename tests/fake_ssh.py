"""ssh in the place of ssh: `fake_ssh.py HOME [-o OPTION]... HOST SCRIPT` runs SCRIPT in HOME.

As on another host, what it starts belongs to a session of its own and gets our standard input.
"""

import subprocess
import sys
from pathlib import Path

home, *words = sys.argv[1:]
while words[0] == "-o":
    words = words[2:]
host, script = words
if host == "nowhere":
    print("ssh: Could not resolve hostname nowhere", file=sys.stderr)
    sys.exit(255)
with Path(home, "log").open("a") as log:
    log.write(script.replace("\n", " ") + "\n")
sys.exit(subprocess.run(["sh", "-c", script], cwd=home, start_new_session=True).returncode)
