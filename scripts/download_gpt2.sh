#!/bin/sh
# Fetches an original GPT-2 from Hugging Face, as a folder that ./train_gpt2_lnfree takes for --model.
#
#   scripts/download_gpt2.sh small|medium|large|xl [FOLDER]          FOLDER: models/gpt2-small, models/gpt2-medium, ...
#
# About 0.55, 1.5, 3.2 and 6.4 GB. What was interrupted goes on where it stopped when the same line is typed again; what
# is complete is left alone. A file that Hugging Face's cache already holds is taken from there, without the network.
#
# What is checked before a file gets its name: its size and its checksum, as the server publishes them for the file
# (X-Linked-Size or Content-Length, X-Linked-Etag or ETag): the SHA-256 of files in large-file storage
# (model.safetensors), the SHA-1 of the git blob of all others. In the cache, the blob's name is this checksum. Each
# file's line says what was checked; where a server or cache publishes no checksum, that is "size only" or "unchecked".
# A file that differs is refused and removed. A file that has its name already is not looked at again.
#
# Environment: HF_ENDPOINT (https://huggingface.co), HF_TOKEN (sent to that server only, not where it redirects to),
# HF_HUB_CACHE ($HF_HOME/hub), HF_HOME ($XDG_CACHE_HOME/huggingface, ~/.cache/huggingface), and curl's own, such as
# https_proxy.
#
# Exit status: 0 everything is there; 1 network, server, checksum or disk; 2 bad use.
set -eu

required="config.json vocab.json merges.txt model.safetensors" # the largest last: it is there when all are
optional="generation_config.json tokenizer.json tokenizer_config.json"

fail() { # STATUS MESSAGE
    echo "scripts/download_gpt2.sh: $2" >&2
    exit "$1"
}

case $#:${1:-} in
    *:-h | *:--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    1:* | 2:*) ;;
    *) fail 2 "usage: scripts/download_gpt2.sh small|medium|large|xl [FOLDER]" ;;
esac
case $1 in
    small) name=gpt2 ;;
    medium | large | xl) name=gpt2-$1 ;;
    *) fail 2 "there is no GPT-2 of size '$1'; choose small, medium, large or xl" ;;
esac
folder=${2:-models/gpt2-$1}
endpoint=${HF_ENDPOINT:-https://huggingface.co}
endpoint=${endpoint%/}
cache=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/huggingface}/hub}

command -v curl >/dev/null 2>&1 || fail 2 "curl is missing; install it (Debian: apt-get install curl)"
if command -v sha256sum >/dev/null 2>&1; then
    sha256() { sha256sum; }
    sha1() { sha1sum; }
elif command -v shasum >/dev/null 2>&1; then
    sha256() { shasum -a 256; }
    sha1() { shasum -a 1; }
else
    fail 2 "neither sha256sum nor shasum is there to check the files; install coreutils"
fi

# ---- checking --------------------------------------------------------------------------------------------------------

size_of() { wc -c <"$1" | tr -d ' '; } # FILE; in bytes

# Compares FILE with what is published, "-" for what is not, and sets $checked to what that was. CHECKSUM may be of a
# kind that says nothing about the content.
matches() { # FILE SIZE CHECKSUM
    checked=unchecked
    if [ "$2" != - ]; then
        found="$(size_of "$1") bytes" published="$2 bytes"
        checked="size only"
        [ "$found" = "$published" ] || return 1
    fi
    case $3 in *[!0-9a-f]*) return 0 ;; esac
    case ${#3} in
        64)
            checked=SHA-256
            found=$(sha256 <"$1")
            ;;
        40)
            checked="git SHA-1"
            found=$({ printf 'blob %s\000' "$(size_of "$1")"; cat "$1"; } | sha1)
            ;;
        *) return 0 ;;
    esac
    published="$checked $3"
    found="$checked ${found%% *}"
    [ "$found" = "$published" ]
}

# The file gets its name; a line says where it came from.
put_in_place() { # NAME SOURCE
    sync "$folder/$1.part" 2>/dev/null || sync # on the disk before it has its name, for power cuts
    mv "$folder/$1.part" "$folder/$1" || fail 1 "cannot write $folder/$1"
    printf '  %-24s %12s bytes   %s, %s\n' "$1" "$(size_of "$folder/$1")" "$2" "$checked"
}

# ---- Hugging Face's cache --------------------------------------------------------------------------------------------

# The snapshots of this model in the cache: that of the branch main first, then any other; "gpt2" is its old name.
snapshots() {
    for repository in "models--openai-community--$name" "models--$name"; do
        main=$(cat "$cache/$repository/refs/main" 2>/dev/null || :)
        [ -z "$main" ] || echo "$cache/$repository/snapshots/$main"
        for snapshot in "$cache/$repository/snapshots"/*; do echo "$snapshot"; done
    done
}

# Takes a file from the cache; false if it is not there or damaged. A snapshot's file links to a blob that is named by
# its checksum. Weights become a second name of the blob where that is possible, so that they lie on the disk once.
from_cache() { # NAME
    cached=$(snapshots | while read -r snapshot; do
        if [ -f "$snapshot/$1" ]; then
            echo "$snapshot/$1"
            break
        fi
    done)
    [ -n "$cached" ] || return 1
    blob=$(readlink "$cached" || :)
    if ! matches "$cached" - "${blob##*/}"; then
        echo "  $1: the copy in the cache is damaged ($cached), so it is downloaded" >&2
        return 1
    fi
    rm -f "$folder/$1.part"
    if [ "$1" != model.safetensors ] || ! ln -L "$cached" "$folder/$1.part" 2>/dev/null; then
        cp -L "$cached" "$folder/$1.part" || {
            rm -f "$folder/$1.part"
            fail 1 "cannot copy $cached to $folder"
        }
    fi
    put_in_place "$1" "from the cache"
}

# ---- the network -----------------------------------------------------------------------------------------------------

# curl with what every request needs. The token goes in by standard input, where other users of this machine cannot read
# it, and to the endpoint only: curl itself keeps it from other hosts when it follows a redirect.
request() { # URL CURL-OPTION...
    case $1 in
        "$endpoint"/*) authorization=${HF_TOKEN:+"Authorization: Bearer $HF_TOKEN"} ;;
        *) authorization= ;;
    esac
    url=$1
    shift
    printf '%s\n' "$authorization" | curl -H @- -H 'Accept-Encoding: identity' --connect-timeout 20 "$@" "$url"
}

# One clear line for what a server or the network answered.
explain() { # URL HTTP-STATUS CURL-STATUS
    case $2 in
        401 | 403) fail 1 "$1: the server refuses access ($2); check HF_TOKEN and HF_ENDPOINT" ;;
        404) fail 1 "$1 is not there (404); check HF_ENDPOINT" ;;
        000) ;;
        *) fail 1 "$1: the server answers with status $2; try again later, the download goes on where it stopped" ;;
    esac
    case $3 in
        5 | 6 | 7) fail 1 "cannot reach $1 (curl: $3); check the network, https_proxy and HF_ENDPOINT" ;;
        23) fail 1 "cannot write into $folder; is the disk full?" ;;
        *) fail 1 "$1 does not arrive (curl: $3); type the same line again to go on where it stopped" ;;
    esac
}

# Of an answer's headers, and curl's own lines below them: status, checksum, size and where it redirects to, each "-" if
# there is none. Quotes and the mark of weak tags go. A redirect's own length and tag are not those of the file.
read_headers() {
    tr -d '\r' | awk '
        { value[tolower($1)] = $2 }
        END {
            found = value["status:"] ~ /^200/
            tag = value["x-linked-etag:"]
            size = value["x-linked-size:"]
            if (found && tag == "") tag = value["etag:"]
            if (found && size == "") size = value["content-length:"]
            gsub(/^W\/|"/, "", tag)
            print value["status:"], (tag == "" ? "-" : tag), (size == "" ? "-" : size), value["next:"] "-"
        }'
}

# Sets $status, $checksum and $size to what the server publishes about a file, "-" for what it does not. Redirects are
# followed one by one up to the answer that speaks about the file itself: the storage behind it knows other checksums.
ask_server() { # URL
    at=$1
    for _ in 1 2 3 4 5; do
        code=0
        headers=$(request "$at" -sI --max-time 60 --retry 3 --suppress-connect-headers \
            -w 'status: %{http_code}\nnext: %{redirect_url}\n') || code=$?
        [ "$code" -eq 0 ] || explain "$at" 000 "$code"
        read -r status checksum size next <<END
$(printf '%s\n' "$headers" | read_headers)
END
        [ "$checksum" = - ] || break
        case $status in 3??) at=${next%-} ;; *) break ;; esac
    done
    case $status in
        200 | 3?? | 404) ;;
        *) explain "$1" "$status" 0 ;;
    esac
}

# Completes FILE.part, in several goes if the connection breaks.
fetch_body() { # URL PART SIZE
    bar=-sS
    [ ! -t 2 ] || bar=--progress-bar
    for attempt in 1 2 3 4 5; do
        if [ "$3" != - ] && [ -f "$2" ]; then
            have=$(size_of "$2")
            [ "$have" -ne "$3" ] || return 0
            [ "$have" -lt "$3" ] || rm -f "$2" # of another file
        fi
        code=0
        answer=$(request "$1" -fL "$bar" -C - --speed-limit 1000 --speed-time 60 -o "$2" -w '%{http_code}') || code=$?
        [ "$code" -ne 0 ] || return 0
        case $code:$answer in
            # No way to go on (33; 36; 416): from the start.
            33:* | 36:* | *:416) rm -f "$2" ;;
            22:408 | 22:429 | 22:5??) ;;
            22:*) explain "$1" "$answer" "$code" ;;
            23:*) explain "$1" 000 "$code" ;;
        esac
        [ "$attempt" -eq 5 ] || sleep "$attempt"
    done
    if [ "$code" -eq 22 ]; then explain "$1" "$answer" "$code"; else explain "$1" 000 "$code"; fi
}

# False if the server has no such file.
from_server() { # NAME
    url=$endpoint/openai-community/$name/resolve/main/$1
    ask_server "$url"
    [ "$status" != 404 ] || return 1
    fetch_body "$url" "$folder/$1.part" "$size"
    if ! matches "$folder/$1.part" "$size" "$checksum"; then
        rm -f "$folder/$1.part"
        fail 1 "$url is refused and removed: it has $found, the server publishes $published; type the same line again"
    fi
    put_in_place "$1" "downloaded"
}

# ---- the folder ------------------------------------------------------------------------------------------------------

complete=yes
for file in $required; do [ -f "$folder/$file" ] || complete=no; done
if [ $complete = yes ]; then
    echo "$folder is complete"
    exit 0
fi

# A folder in which nothing could be put does not stay.
trap 'rmdir "$folder" 2>/dev/null || :' EXIT
mkdir -p "$folder" || fail 1 "cannot make the folder $folder"
echo "openai-community/$name -> $folder"
for file in config.json $optional $required; do
    [ ! -f "$folder/$file" ] || continue
    if from_cache "$file" || from_server "$file"; then continue; fi
    case " $required " in *" $file "*) explain "$url" 404 0 ;; esac
done
echo "$folder is complete"
