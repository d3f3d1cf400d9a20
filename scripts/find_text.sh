#!/bin/sh
# Prints the path of a text to train on; the other scripts ask it.
#
#   scripts/find_text.sh FILE|openwebtext|tinystories
#
# FILE is any text that `tokenize` reads (.txt, .jsonl, .gz of both). openwebtext and tinystories are samples of some
# thousand documents: that of ../shared/data/text where there is such a folder, else runs/texts/NAME.jsonl, which
# scripts/fetch_text.py fetches the first time (a few megabytes; it needs the network and Python with
# data/requirements.txt: PYTHON, else .venv/bin/python where that is there, else python3). The two need not hold
# the same documents.
#
# Exit status: 0; 1 the network or the disk failed; 2 the file is not there, or Python or its packages are not.
set -eu

fail() { # MESSAGE
    echo "scripts/find_text.sh: $1" >&2
    exit 2
}

here=$(dirname "$0")
case $#:${1:-} in
    *:-h | *:--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    1:openwebtext) documents=1000 ;;
    1:tinystories) documents=3000 ;;
    1:?*)
        if [ ! -f "$1" ] || [ ! -r "$1" ]; then
            fail "$1 is no text file that can be read; name one (.txt, .jsonl, .gz of both), or openwebtext or tinystories"
        fi
        echo "$1"
        exit
        ;;
    *) fail "usage: scripts/find_text.sh FILE|openwebtext|tinystories" ;;
esac

shared=../shared/data/text/${1}_sample.jsonl.gz
fetched=runs/texts/$1.jsonl
if [ -r "$shared" ]; then
    echo "$shared"
elif [ -r "$fetched" ]; then
    echo "$fetched"
else
    python=${PYTHON:-python3}
    if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
    "$python" -c 'import numpy, datasets' >/dev/null 2>&1 ||
        fail "no text: name one of your own by TEXT=FILE, or install what fetches $1: python3 -m venv .venv && .venv/bin/pip install -r data/requirements.txt"
    echo "fetching $documents documents of $1 to $fetched" >&2
    "$python" "$here/fetch_text.py" "$1" "$documents" "$fetched"
    echo "$fetched"
fi
