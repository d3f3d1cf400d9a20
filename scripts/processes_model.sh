#!/bin/sh
# What communication takes of a step where several processes train one model: computed, not measured.
#
#   scripts/processes_model.sh --parameters P --micro-batches G --processes N --bits PER_SECOND --latency SECONDS
#   scripts/processes_model.sh --markdown     the table of dev/run/README.md: GPT-2 Small and XL, 1 to 64 processes
#
# A process sends its sums of gradients to the owners of the other parts, chunk by chunk, and its part of the new parameters
# to all others; beside that there are four small messages for everybody. Bytes go at the line's speed. A chunk, and each
# small message, waits for the line's latency: a chunk three times (request, answer, data), a message for everybody once
# for each of log2(N) rounds. Computing is not in it, nor that processes wait for the slowest.
set -eu

usage() {
    sed -n 's/^# \{0,1\}//; 4,5p' "$0" >&2
    exit 2
}

# awk's: seconds(parameters, micro-batches, processes, bits per second, latency)
model='
function ceil(x) { return x == int(x) ? x : int(x) + 1 }
# The sums that are left of micro-batches first .. last - 1 of g, once neighbours are joined (dev/cpu/gradient_tree.h).
function sums(first, last, g,    count, width) {
    for (count = 0; first < last; count++) {
        for (width = 1; first % (2 * width) == 0 && (first + 2 * width <= last || (last == g && first + width < last)); )
            width *= 2
        first = first + width < last ? first + width : last
    }
    return count
}
function most_sums(g, n,    r, first, size, most, now) {
    first = 0
    for (r = 0; r < n; r++) {
        size = int(g / n) + (r < g % n ? 1 : 0)
        now = sums(first, first + size, g)
        if (now > most) most = now
        first += size
    }
    return most
}
function seconds(p, g, n, bits, latency,    part, k, bytes, chunks) {
    if (n == 1) return 0
    part = p / n
    k = most_sums(g, n)
    bytes = 4 * (k * (p - part) + (n - 1) * part)
    chunks = k * ceil(part / 1048576)
    return 8 * bytes / bits + latency * (3 * chunks + 4 * ceil(log(n) / log(2)))
}'

markdown() {
    awk "$model"'
    BEGIN {
        print "| processes | Small, 10 Gbit | Small, 100 Gbit | Small, NVLink | XL, 10 Gbit | XL, 100 Gbit | XL, NVLink |"
        print "|---:|---:|---:|---:|---:|---:|---:|"
        split("124439808 1557611200", p)
        split("1e10 1e11 3.6e12", bits)
        split("5e-5 1e-5 5e-6", latency)
        for (n = 1; n <= 64; n *= 2) {
            row = "| " n
            for (size = 1; size <= 2; size++)
                for (line = 1; line <= 3; line++)
                    row = row sprintf(" | %.3g s", seconds(p[size], 64, n, bits[line], latency[line]))
            print row " |"
        }
    }'
}

parameters='' micro_batches='' processes='' bits='' latency=''
[ $# -gt 0 ] || usage
while [ $# -gt 0 ]; do
    case $1 in
        --markdown) markdown && exit 0 ;;
        --parameters) parameters=$2 ;;
        --micro-batches) micro_batches=$2 ;;
        --processes) processes=$2 ;;
        --bits) bits=$2 ;;
        --latency) latency=$2 ;;
        *) usage ;;
    esac
    shift 2
done
[ -n "$parameters$micro_batches$processes$bits$latency" ] || usage
awk -v p="$parameters" -v g="$micro_batches" -v n="$processes" -v b="$bits" -v l="$latency" "$model"'
BEGIN { printf "computed: %.3g s of a step for communication\n", seconds(p, g, n, b, l) }'
