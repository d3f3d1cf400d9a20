#!/bin/bash
# A removal over several machines that are none: network namespaces of this one, joined by a bridge through links of 100 Mbit
# and 5 ms each way, so that everything between two hosts goes through TCP and takes 10 ms and more. Holds the weights against
# those of one process, and prints what communication took beside what dev/run/README.md's model predicts.
#
#   test/hosts.sh [PROGRAM]     default ./train_gpt2_lnfree
#
# HOSTS=3, RATE=100mbit, DELAY=5ms (what a host's packets wait; none where the kernel has no netem), STEPS=12, WIDTH=96.
# Exit 0: the same weights, or SKIPPED where this machine gives no rights to make namespaces or has no mpirun or iproute2; 1: not
# the same weights, or it did not end.
set -eu
cd "$(dirname "$0")/.."
program=$(realpath "${1:-./train_gpt2_lnfree}")
hosts=${HOSTS:-3} rate=${RATE:-100mbit} delay=${DELAY:-5ms} steps=${STEPS:-12} width=${WIDTH:-96}
name=lnfree$$

skip() { # REASON
    echo "SKIPPED: several hosts: $1"
    exit 0
}
for tool in ip tc mpirun unshare; do command -v "$tool" >/dev/null 2>&1 || skip "there is no $tool"; done
[ "$(id -u)" = 0 ] || skip "only root makes network namespaces"
mpirun --version 2>/dev/null | grep -q 'Open MPI' || skip "mpirun is not Open MPI's"

work=$(mktemp -d)
namespaces=
clean_up() {
    for each in $namespaces; do ip netns del "$each" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

make_namespace() { # NAME
    ip netns add "$1" 2>/dev/null || skip "this machine makes no network namespaces"
    namespaces="$namespaces $1"
    ip -n "$1" link set lo up
}

# A kernel without netem can make a link slow, but not long.
limit() { # NAMESPACE DEVICE
    ip netns exec "$1" tc qdisc add dev "$2" root netem delay "$delay" rate "$rate" limit 20000 2>/dev/null && return
    ip netns exec "$1" tc qdisc add dev "$2" root tbf rate "$rate" burst 64kb latency 20ms 2>/dev/null ||
        skip "this machine cannot slow a link down"
    delay=0ms
}

make_namespace "$name-switch"
ip -n "$name-switch" link add name bridge type bridge 2>/dev/null || skip "this machine makes no bridges"
ip -n "$name-switch" link set bridge up
for host in $(seq 1 "$hosts"); do
    make_namespace "$name-$host"
    ip link add eth0 netns "$name-$host" type veth peer name "port$host" netns "$name-switch" 2>/dev/null ||
        skip "this machine makes no virtual links"
    ip -n "$name-switch" link set "port$host" master bridge up
    ip -n "$name-$host" addr add "10.213.7.$host/24" dev eth0
    ip -n "$name-$host" link set eth0 up
    limit "$name-$host" eth0
done

# What mpirun calls instead of ssh: AGENT HOST COMMAND...
cat >"$work/agent" <<END
#!/bin/sh
host=\$1
shift
exec ip netns exec "$name-\${host##*.}" unshare --uts sh -c "hostname host\${host##*.}; \$*"
END
chmod +x "$work/agent"

export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
"$program" stories --count 200 --out "$work/stories.jsonl" >/dev/null
"$program" tokenize --input "$work/stories.jsonl" --out "$work/s" >/dev/null
data="--data $work/s_train_*.bin --val $work/s_val_*.bin"
set -f
# shellcheck disable=SC2086
"$program" pretrain $data --out "$work/base" --n-layer 4 --n-head 4 --n-embd "$width" --n-ctx 64 --steps 10 --batch 4 \
    --grad-accum 1 >/dev/null
removal="remove --model $work/base $data --steps $steps --batch 2 --grad-accum 8 --val-tokens 1024"
# shellcheck disable=SC2086
"$program" $removal --out "$work/one" >/dev/null

list=10.213.7.1
for host in $(seq 2 "$hosts"); do list=$list,10.213.7.$host; done
# shellcheck disable=SC2086
timeout 600 ip netns exec "$name-1" unshare --uts sh -c 'hostname host1; exec "$@"' sh \
    mpirun --host "$list" --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca btl_tcp_if_include eth0 \
    --mca oob_tcp_if_include eth0 --bind-to none -np "$hosts" "$program" $removal --out "$work/several" \
    >"$work/said" 2>&1 || { cat "$work/said" >&2 && exit 1; }

cmp "$work/one/model.safetensors" "$work/several/model.safetensors" || exit 1
parameters=$("$program" info --model "$work/base" --json | tr ',' '\n' | sed -n 's/^ *"parameters": *//p' | head -n 1)
measured=$(sed -n 's/.*"communication_s":\([0-9.e+-]*\).*/\1/p' "$work/several/log.jsonl" | sort -g |
    awk '{ t[NR] = $1 } END { print t[int((NR + 1) / 2)] }')
echo "$hosts hosts, links of $rate and $delay, $parameters parameters, 8 micro-batches: the weights of one process;" \
    "communication takes ${measured} s of a step (median)"
scripts/processes_model.sh --parameters "$parameters" --micro-batches 8 --processes "$hosts" \
    --bits "$(echo "$rate" | sed 's/mbit/e6/; s/gbit/e9/; s/kbit/e3/')" \
    --latency "$(echo "$delay" | sed 's/ms/e-3/; s/us/e-6/')"
