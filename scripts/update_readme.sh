#!/bin/sh
# Writes measured tables into README.md between their markers, so that nobody types figures.
#
#   scripts/update_readme.sh        takes table.md, findings.md and loss.svg of demo/, runs/real_text/table.md,
#                                   runs/sweep/table.md, runs/robust/table.md with its picture,
#                                   runs/robust_wide/table.md, and runs/findings/*/findings.md where they are
set -eu

insert() { # MARKER FILE
    [ -r "$2" ] || { echo "scripts/update_readme.sh: $2 is not there, its table stays as it is"; return 0; }
    awk -v begin="<!-- $1 -->" -v end="<!-- end of $1 -->" -v file="$2" '
        $0 == end { inside = 0 }
        !inside { print }
        $0 == begin { inside = 1; while ((getline line < file) > 0) print line }
    ' README.md >README.md.new
    mv README.md.new README.md
}

insert "demo table" demo/table.md
insert "demo findings" demo/findings.md
insert "story findings" runs/findings/story/findings.md
insert "bpe findings" runs/findings/bpe/findings.md
insert "real text table" runs/real_text/table.md
insert "sweep table" runs/sweep/table.md
insert "robust table" runs/robust/table.md
insert "robust wide table" runs/robust_wide/table.md
if [ -r demo/loss.svg ]; then cp demo/loss.svg scripts/demo_loss.svg; fi
if [ -r runs/robust/fewer.svg ]; then cp runs/robust/fewer.svg scripts/robust_removal.svg; fi
