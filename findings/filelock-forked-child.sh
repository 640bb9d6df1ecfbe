#!/usr/bin/env bash
# filelock 3.29.7: a forked child that ends by itself gives its parent's lock away.
#
# A process holds a FileLock and forks, as multiprocessing and web servers do. The child never touches the lock. When it
# ends by sys.exit, its copy of the lock object is collected, and that unlocks the file, which parent and child share:
# another process then gets the lock, while is_locked is still True in the parent. Two writers write to one file. filelock
# 4.3.1 keeps the lock. Passes while that is so.
# Seen: filelock 3.29.7: locked in the parent: True, another process: got the lock
#       filelock 4.3.1: locked in the parent: True, another process: did not get the lock
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/holder.py" <<'PYTHON'
import os
import subprocess
import sys

import filelock

ASK = """
import sys, filelock
try:
    filelock.FileLock(sys.argv[1], timeout=0).acquire()
    print("got the lock")
except filelock.Timeout:
    print("did not get the lock")
"""
path = f"{sys.argv[1]}/lock"
lock = filelock.FileLock(path, timeout=0, thread_local=False)
lock.acquire()
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
other = subprocess.run([sys.executable, "-c", ASK, path], capture_output=True, text=True, check=True)
print(f"filelock {filelock.__version__}: locked in the parent: {lock.is_locked}, another process: {other.stdout.strip()}")
PYTHON
for version in 3.29.7 4.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "filelock==$version"
    "$folder/$version/bin/python" "$folder/holder.py" "$folder/$version" | tee "$folder/$version.txt"
done
grep -q "parent: True, another process: got the lock" "$folder/3.29.7.txt"
grep -q "parent: True, another process: did not get the lock" "$folder/4.3.1.txt"
