#!/bin/bash
# Can the tests fail? Plants the faults of test/mutants.txt, one at a time, in a copy of this tree, and says which test saw
# each.
#
#   scripts/mutants.sh                  each mutant's likeliest tests first, then every other; the first failure decides
#   scripts/mutants.sh --all            every test for every mutant: the whole matrix, hours
#   scripts/mutants.sh --likeliest      only the likeliest tests: what these do not see is named and not recorded
#   scripts/mutants.sh --only TEXT      only mutants whose name contains TEXT
#   scripts/mutants.sh --limit MINUTES  begins no other mutant after that time; the next call goes on
#   scripts/mutants.sh --readme         also writes the table into test/README.md (of finished mutants, with --limit 0)
#   scripts/mutants.sh --list           names, files and likeliest tests
#   scripts/mutants.sh --check          only whether every mutant's text is there, exactly once, and its tests are
#
# The copies are build/mutants/clean, built and tested as it is, and build/mutants/tree, made anew from it for every mutant,
# so that only what the fault touches is compiled. Results are kept in build/mutants/results.tsv for as long as the mutant and
# its file stay what they are, and a survivor's only until a test changes. A mutant that does not compile, or whose text is gone, is an error, not killed.
# Variables: TEST_TIMEOUT, seconds until a test counts as hanging, which kills a mutant (600); CXX; ISA, as for make.
# Exit status: 0; 1 if a mutant survived without a reason in the list, or for an error; 2 for bad use.
set -uf
cd "$(dirname "$0")/.." || exit 1

list=test/mutants.txt
work=$PWD/build/mutants
unset MAKEFLAGS MAKELEVEL WERROR
export TEST_TIMEOUT=${TEST_TIMEOUT:-600}
# Only the best instruction set of this processor is built: a third of the compiler's work for an operation.
ISA=${ISA:-$(scripts/detect.sh --words | tr ' ' '\n' | grep -E '^avx(2|512)$' | tail -n 1)}
export ISA=${ISA:-portable}

die() { # STATUS MESSAGE
    echo "scripts/mutants.sh: $2" >&2
    exit "$1"
}

# ---- the list --------------------------------------------------------------------------------------------------------

names=() files=() olds=() news=() tests=() whys=()
read_list() {
    local line n=-1
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            '' | '#'*) continue ;;
            '['*']')
                n=$((n + 1))
                names[n]=${line:1:-1} files[n]='' olds[n]='' news[n]='' tests[n]='' whys[n]=''
                ;;
            'file '*) files[n]=${line#file } ;;
            'tests '*) tests[n]=${line#tests } ;;
            'why '*) whys[n]=${line#why } ;;
            '- '*) olds[n]+=${olds[n]:+$'\n'}${line:2} ;;
            '+' | '+ '*) news[n]+=${news[n]:+$'\n'}${line:2} ;;
            *) die 2 "$list: what is \"$line\"? Lines are [name], file, -, +, tests and why (see its head)" ;;
        esac
    done <"$list"
    [ "$n" -ge 0 ] || die 2 "$list lists no mutant"
}

# The mutant's file under FOLDER with the fault in it. Status 3: its text is not there; 4: more than once.
mutated() { # N FOLDER
    OLD=${olds[$1]} NEW=${news[$1]} LC_ALL=C awk '
        { text = text $0 "\n" }
        END {
            old = ENVIRON["OLD"]
            at = index(text, old)
            if (old == "" || at == 0) exit 3
            rest = substr(text, at + length(old))
            if (index(rest, old) > 0) exit 4
            printf "%s%s%s", substr(text, 1, at - 1), ENVIRON["NEW"], rest
        }' "$2/${files[$1]}"
}

# What is wrong with a mutant, in words; nothing if it can be planted.
problem_with() { # N
    local n=$1 m
    for ((m = 0; m < n; m++)); do
        if [ "${names[m]}" = "${names[n]}" ]; then echo "another mutant has this name" && return; fi
    done
    if [ -z "${files[n]}" ] || [ -z "${tests[n]}" ]; then echo "it lacks its file or its tests" && return; fi
    if [ "${olds[n]}" = "${news[n]}" ]; then echo "it changes nothing" && return; fi
    if [ ! -f "${files[n]}" ]; then echo "there is no ${files[n]}" && return; fi
    mutated "$n" . >/dev/null
    case $? in
        0) ;;
        3) echo "its text is not in ${files[n]}" ;;
        4) echo "its text is more than once in ${files[n]}" ;;
        *) echo "awk failed on ${files[n]}" ;;
    esac
}

# Whether the sources have such a test, as run_test takes it.
is_test() { # TEST
    local name=${1%%:*} cases=${1#*:} source case
    name=${name%%@*}
    name=${name/#isa-*\//isa/}
    source=$(find test -path "test/*$name*.cpp" | sort | head -n 1)
    [ -n "$source" ] || return
    [[ $1 == *:* ]] || return 0
    shopt -s nocasematch # as doctest does
    while IFS= read -r case; do
        # shellcheck disable=SC2053  # a pattern
        if [[ $case == $cases ]]; then shopt -u nocasematch && return; fi
    done < <(tr -s '\n ' ' ' <"$source" | grep -oE 'TEST_CASE[A-Z_]*\( ?"[^"]*' | sed 's/^[^"]*"//')
    shopt -u nocasematch
    return 1
}

check_list() {
    local n problem test bad=0 stale=0
    for n in "${chosen[@]}"; do
        problem=$(problem_with "$n")
        for test in ${tests[n]}; do
            is_test "$test" && continue
            echo "stale    ${names[n]}: there is no test $test"
            stale=$((stale + 1))
        done
        [ -z "$problem" ] && continue
        echo "error    ${names[n]}: $problem"
        bad=$((bad + 1))
    done
    echo "$((${#chosen[@]} - bad)) of ${#chosen[@]} mutants can be planted; $stale likeliest tests are not there"
    [ $((bad + stale)) -eq 0 ]
}

# ---- the copies ------------------------------------------------------------------------------------------------------

# Brings what differs to $work/clean; its objects stay. A file that came or went begins the copy anew.
update_copy() {
    local file
    mkdir -p "$work/logs" || die 1 "cannot write to $work"
    git -c core.quotepath=off ls-files -co --exclude-standard | while IFS= read -r file; do
        if [ -f "$file" ]; then printf '%s\n' "$file"; fi
    done >"$work/files.new"
    [ -s "$work/files.new" ] || die 1 "git names no files here; run it in a git checkout"
    cmp -s "$work/files" "$work/files.new" || rm -rf "$work/clean" "$work/baseline"
    mv "$work/files.new" "$work/files"
    while IFS= read -r file; do
        cmp -s "$file" "$work/clean/$file" && continue
        case $file in "$list" | test/README.md | scripts/mutants.sh) ;; *) rm -f "$work/baseline" ;; esac
        mkdir -p "$(dirname "$work/clean/$file")"
        cp "$file" "$work/clean/$file" || die 1 "cannot copy $file"
    done <"$work/files"
    if [ -d ../shared ]; then ln -sfn "$(realpath ../shared)" "$work/shared"; fi # tests look for data there
}

plant() { # N
    rm -rf "$work/tree"
    cp -a "$work/clean" "$work/tree" || die 1 "cannot copy to $work/tree"
    mutated "$1" "$work/clean" >"$work/tree/${files[$1]}" || die 1 "cannot plant \"${names[$1]}\""
}

# ---- tests -----------------------------------------------------------------------------------------------------------

# Runs a test in a copy. TEST: NAME as in `make test ONLY=NAME`; NAME:CASES, of that one program only the test cases that
# doctest's --test-case=CASES chooses; or "everything". Status 0: passed, 1: failed, 2: not built, or nothing ran.
run_test() { # FOLDER TEST LOG
    local name=${2%%:*} compiler=${CXX:-g++} program tested='' summary
    program=build/$(basename "${compiler##* }")-$ISA/test/$name
    [[ $name == */* ]] || tested=train_gpt2_lnfree # which tests in test/ itself may start
    case $2 in
        everything) make -C "$1" CUDA=0 test ;;
        *:*)
            make -C "$1" CUDA=0 "$program" ${tested:+"$tested"} && (
                cd "$1" || exit
                export LNFREE_PROGRAM=./train_gpt2_lnfree OMP_WAIT_POLICY=passive
                timeout -k 10 "$TEST_TIMEOUT" "$program" --test-case="${2#*:}" >"$3.part" 2>&1
                status=$?
                # in the words of test/run.sh
                [ "$status" -eq 0 ] || printf 'FAILED   %s\n%s ended with status %s\n' "$program" "$program" "$status"
                cat "$3.part"
            )
            ;;
        *) make -C "$1" CUDA=0 test ONLY="$2" ;;
    esac >"$3" 2>&1 </dev/null
    if grep -q '^FAILED   ' "$3"; then return 1; fi
    summary=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$|^\[doctest\] test cases: ' "$3" | tail -n 1)
    case $summary in
        '' | '0 passed'* | *' 0 passed'*) return 2 ;;
    esac
}

# The tests that failed, each with its first test case that did: "double/test_gradients: LayerNorm; ...".
killers() { # LOG
    awk '
        /^FAILED   / { sub(/.*\/test\//, ""); name[++n] = $0; next }
        /^TEST CASE:  / { heading = substr($0, 13); next }
        / (FATAL )?ERROR: / && !(n in what) { what[n] = ": " heading }
        END { for (i = 1; i <= n; i++) printf "%s%s%s", (i > 1 ? "; " : ""), name[i], what[i] }
    ' "$1"
    if grep -q 'ended with status 124$' "$1"; then printf ' (timeout)'; fi
}

# Unmutated, a test must pass, or it says nothing. Remembered for as long as the tree stays what it is.
baseline() { # TEST
    grep -qxF -- "$1" "$work/baseline" 2>/dev/null && return
    echo "unmutated: $1"
    run_test "$work/clean" "$1" "$work/logs/baseline.log" ||
        die 1 "$1 does not pass on the tree as it is; see $work/logs/baseline.log"
    printf '%s\n' "$1" >>"$work/baseline"
}

# ---- results ---------------------------------------------------------------------------------------------------------

# Lines of: key, name, killed or survived, by whom, seconds, tests. The key says what the result holds for, and "tests" with
# which tests a mutant survived: more of them may kill it.
results=$work/results.tsv
tests_hash=
key_of() { # N
    printf '%s\0' "${all#likeliest}" "${files[$1]}" "${olds[$1]}" "${news[$1]}" |
        cat - "$work/clean/${files[$1]}" 2>/dev/null | # the copy: the tree may be edited meanwhile
        sha256sum | cut -c 1-16
}
result_of() { # N FIELD
    awk -F '\t' -v key="$(key_of "$1")" -v field="$2" -v tests="$tests_hash" \
        '$1 == key && ($3 == "killed" || $6 == tests) { value = $field } END { print value }' "$results" 2>/dev/null
}

try_mutant() { # N
    local n=$1 began=$SECONDS test verdict=survived by='' planted='' key log status candidates
    key=$(key_of "$n")
    log=$work/logs/$key.log
    candidates="${tests[n]} everything"
    [ "$all" = all ] && candidates=everything
    [ "$all" = likeliest ] && candidates=${tests[n]}
    for test in $candidates; do
        [ "$test" = everything ] || is_test "$test" || continue
        if ! grep -qxF -- "$test" "$work/baseline" 2>/dev/null; then
            baseline "$test"
            planted=
        fi
        [ -n "$planted" ] || plant "$n"
        planted=yes
        run_test "$work/tree" "$test" "$log"
        status=$?
        if [ "$status" -eq 2 ]; then
            printf 'error    %5d s  %s: it does not compile, or %s did not run; see %s\n' $((SECONDS - began)) \
                "${names[n]}" "$test" "$log"
            return 1
        fi
        [ "$status" -eq 0 ] && continue
        verdict=killed
        by=$(killers "$log")
        break
    done
    if [ "$all" = likeliest ] && [ "$verdict" = survived ]; then verdict=unseen; fi
    printf '%-8s %5d s  %s%s\n' "$verdict" $((SECONDS - began)) "${names[n]}" "${by:+ <- $by}"
    [ "$verdict" = unseen ] && return
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$key" "${names[n]}" "$verdict" "$by" $((SECONDS - began)) "$tests_hash" >>"$results"
}

# Survivors first.
table() {
    local n verdict killed='' survived=''
    cell() { printf '%s' "${1//|/\\|}"; }
    for ((n = 0; n < ${#names[@]}; n++)); do
        verdict=$(result_of "$n" 3)
        if [ "$verdict" = survived ]; then
            survived+="| $(cell "${names[n]}") | ${files[n]} | $(cell "${whys[n]:-not explained: a test is missing}") |"$'\n'
        elif [ "$verdict" = killed ]; then
            killed+="| $(cell "${names[n]}") | ${files[n]} | $(cell "$(result_of "$n" 4)") | $(result_of "$n" 5) |"$'\n'
        fi
    done
    if [ -n "$survived" ]; then printf '| survivor | file | why |\n|---|---|---|\n%s\n' "$survived"; fi
    printf '| mutant | file | killed by | seconds |\n|---|---|---|---:|\n%s' "$killed"
}

write_readme() {
    local readme=test/README.md
    [ "$(grep -cxF -e '<!-- mutants -->' -e '<!-- end of mutants -->' "$readme")" = 2 ] ||
        die 2 "$readme needs the lines <!-- mutants --> and <!-- end of mutants -->, each once"
    table >"$work/table.md"
    awk -v file="$work/table.md" '
        $0 == "<!-- end of mutants -->" { inside = 0 }
        !inside { print }
        $0 == "<!-- mutants -->" { inside = 1; while ((getline line < file) > 0) print line }
    ' "$readme" >"$work/readme.md" && cat "$work/readme.md" >"$readme"
    echo "wrote the table into $readme"
}

# ---- what was asked for ----------------------------------------------------------------------------------------------

all='' only='' limit='' readme='' what=run
while [ $# -gt 0 ]; do
    case $1 in
        --all) all=all ;;
        --likeliest) all=likeliest ;;
        --only | --limit)
            [ -n "${2:-}" ] || die 2 "$1 needs a value"
            if [ "$1" = --only ]; then only=$2; else limit=$2; fi
            shift
            ;;
        --readme) readme=yes ;;
        --list | --check) what=$1 ;;
        --help | -h) sed -n '2,/^set /s/^# \{0,1\}//p' scripts/mutants.sh && exit ;;
        *) die 2 "what is \"$1\"? See --help" ;;
    esac
    shift
done
[[ $limit =~ ^[0-9]*$ ]] || die 2 "--limit $limit: give whole minutes"

read_list
chosen=()
for ((n = 0; n < ${#names[@]}; n++)); do
    if [[ ${names[n]} == *"$only"* ]]; then chosen+=("$n"); fi
done
[ ${#chosen[@]} -gt 0 ] || die 2 "--only $only: no mutant's name contains that; see --list"
if [ "$what" = --list ]; then
    for n in "${chosen[@]}"; do printf '%s\n    %s   %s\n' "${names[n]}" "${files[n]}" "${tests[n]}"; done
    exit
fi
if [ "$what" = --check ]; then
    check_list
    exit
fi

mkdir -p "$work"
exec 9>"$work/lock"
flock -n 9 || die 1 "another run is at work in $work; wait for it"
update_copy
tests_hash=$(grep '^test/' "$work/files" | grep -vxF -e test/README.md -e "$list" | xargs sha256sum | sha256sum | cut -c 1-16)
errors=0 left=0
to_try=()
for n in "${chosen[@]}"; do
    problem=$(problem_with "$n")
    if [ -n "$problem" ]; then
        echo "error    ${names[n]}: $problem"
        errors=$((errors + 1))
    elif [ -z "$(result_of "$n" 3)" ]; then
        to_try+=("$n")
    fi
done
echo "${#chosen[@]} mutants, ${#to_try[@]} to be tried"
over() { [ -n "$limit" ] && [ "$SECONDS" -ge $((limit * 60)) ]; }
for n in ${to_try[@]+"${to_try[@]}"}; do
    over && break
    for test in ${tests[n]}; do
        if [ "$all" != all ] && is_test "$test"; then baseline "$test"; fi
    done
done 9>&-
for n in ${to_try[@]+"${to_try[@]}"}; do
    if over; then
        left=$((left + 1))
    else
        try_mutant "$n" || errors=$((errors + 1))
    fi
done 9>&-

killed=0 survived=0 unexplained=0
for n in "${chosen[@]}"; do
    case $(result_of "$n" 3) in
        killed) killed=$((killed + 1)) ;;
        survived)
            survived=$((survived + 1))
            [ -n "${whys[n]}" ] || unexplained=$((unexplained + 1))
            echo "survived ${names[n]}: ${whys[n]:-not explained}"
            ;;
    esac
done
[ -z "$readme" ] || write_readme
echo "$killed killed, $survived survived ($unexplained unexplained), $errors errors, $left left for another call"
[ "$unexplained" -eq 0 ] && [ "$errors" -eq 0 ]
