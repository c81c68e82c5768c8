#!/bin/sh
# Say plainly what this machine lacks before pip says it in its own words. Usage: preflight.sh PYTHON
python=$1
missing() { echo "mrmodel setup: $1" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 ||
    missing "no '$python' here. Debian: apt-get install python3 python3-venv; or make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    missing "$("$python" --version) is too old, 3.11 or newer is needed: make PYTHON=python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    missing "this Python cannot make environments. Debian: apt-get install python3-venv"
command -v git >/dev/null 2>&1 || missing "git is missing. Debian: apt-get install git"
git rev-parse --git-dir >/dev/null 2>&1 ||
    missing "this is not a git clone, and DVC needs one: git init && git add -A && git commit -m start"
free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
[ "$free_kb" -gt 6000000 ] || missing "less than 6 GB free here; the environment alone takes about 3 GB"
