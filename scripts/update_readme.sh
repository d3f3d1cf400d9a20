#!/bin/sh
# Writes measured tables between their markers in the README of the room that each belongs to, so that nobody types figures.
#
#   scripts/update_readme.sh        takes what is there of
#                                   demo/                      table.md, findings.md, loss.svg -> README.md; findings.md -> dev/analysis
#                                   runs/real_text/table.md    scripts
#                                   runs/sweep/table.md        scripts
#                                   scripts/faithful_removal.csv  scripts; a summary -> README.md
#                                   runs/findings/story/       findings.md, findings_paper.md -> dev/analysis
#                                   runs/findings/bpe/         findings.md -> dev/analysis
#                                   ./train_gpt2_lnfree        its table of settings -> dev/README.md; a step's launches -> dev/cuda/STEP.md
#
# The other tables are written by the programs that measure them: dev/cpu/README.md's ladder by `dev/cpu/matmul --readme`,
# dev/README.md's build times by scripts/build_times.sh, test/README.md's mutants by scripts/mutants.sh. Exit status: 0,
# 2 where a README has lost a marker.
set -eu

new=$(mktemp)
trap 'rm -f "$new" "$new.page"' EXIT

insert() { # MARKER FILE README
    [ -s "$2" ] || { echo "scripts/update_readme.sh: $2 is not there, its table in $3 stays as it is"; return 0; }
    if [ "$(grep -cxF -e "<!-- $1 -->" -e "<!-- end of $1 -->" "$3")" != 2 ]; then
        echo "scripts/update_readme.sh: $3 needs the lines <!-- $1 --> and <!-- end of $1 -->, each once" >&2
        exit 2
    fi
    awk -v begin="<!-- $1 -->" -v end="<!-- end of $1 -->" -v file="$2" '
        $0 == end { inside = 0 }
        !inside { print }
        $0 == begin { inside = 1; while ((getline line < file) > 0) print line }
    ' "$3" >"$new.page"
    cat "$new.page" >"$3"
}

insert "demo table" demo/table.md README.md
insert "demo findings" demo/findings.md README.md
insert "demo findings" demo/findings.md dev/analysis/README.md
insert "story findings" runs/findings/story/findings.md dev/analysis/README.md
insert "story findings as the paper's code" runs/findings/story/findings_paper.md dev/analysis/README.md
insert "bpe findings" runs/findings/bpe/findings.md dev/analysis/README.md
insert "real text table" runs/real_text/table.md scripts/README.md
insert "sweep table" runs/sweep/table.md scripts/README.md
BEDS="embedded settled wide young planted40 grown40" scripts/faithful_removal.sh --table >"$new" && insert "faithful table" "$new" scripts/README.md
scripts/faithful_removal.sh --summary >"$new" && insert "faithful summary" "$new" README.md
WAYS="auto auto_256_1.6e-3 auto_4096_1.6e-3 auto_4096_1.4e-3 $(sed -n 's/^ *\(taught[a-z_]*\|shrunk_[a-z_]*\)) echo.*/\1_1e-3 \1_2e-3/p' scripts/faithful_removal.sh | tr '\n' ' ')" STEPS="300 75" scripts/faithful_removal.sh --table >"$new" &&
    insert "candidates table" "$new" scripts/README.md
BEDS="flat flat_llama flat_neox flat_scaled" STEPS=300 WAYS="auto paper control_1e-4 control_3e-4 control_1e-3" scripts/faithful_removal.sh --table >"$new" && insert "shapes table" "$new" scripts/README.md
BEDS=embedded STEPS=300 WAYS="auto lora64_3e-3 lora16_3e-3 lora4_3e-3 paper lora64_paper_3e-3 lora16_paper_3e-3 lora4_paper_3e-3" scripts/faithful_removal.sh --table >"$new" &&
    insert "low-rank table" "$new" scripts/README.md
if [ -x ./train_gpt2_lnfree ] && ./train_gpt2_lnfree info --settings --markdown >"$new" 2>/dev/null; then
    insert "settings" "$new" dev/README.md
else
    echo "scripts/update_readme.sh: ./train_gpt2_lnfree is not built or prints no settings, its table in dev/README.md stays as it is"
fi
if [ -x ./train_gpt2_lnfree ] && ./train_gpt2_lnfree bench --floors --batch 16 --seq 1024 --markdown >"$new" 2>/dev/null; then
    insert "floors" "$new" dev/cuda/STEP.md
fi
if [ -r demo/loss.svg ]; then cp demo/loss.svg scripts/demo_loss.svg; fi
