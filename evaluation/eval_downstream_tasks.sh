#!/usr/bin/env bash
# The downstream tasks of one checkpoint. What can be set beforehand, for instance with `export MODEL=...`:
#   MODEL       checkpoint folder or hub id
#   OUTPUT_DIR  where results.json, results.md and results.png go
#   TASKS       base, instruct, or names by commas
#   DATA_DIR    folder of local task files; the hub if empty
#   LIMIT       most items of a task; all if empty
#   HARNESS     lm-eval, or lighteval with the lists beside this script (evaluation/README.md says what it needs)
set -euo pipefail

MODEL="${MODEL:-SmallDoge/Doge-20M}"
OUTPUT_DIR="${OUTPUT_DIR:-./eval_results}"
TASKS="${TASKS:-base}"
DATA_DIR="${DATA_DIR:-}"
LIMIT="${LIMIT:-}"
HARNESS="${HARNESS:-lm-eval}"

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bin="$here/../.venv/bin"
if [ -x "$bin/small-doge" ]; then
  PATH="$bin:$PATH"
fi

case "$HARNESS" in
lm-eval)
  small-doge eval "$MODEL" --tasks "$TASKS" --output "$OUTPUT_DIR" \
    ${DATA_DIR:+--data-dir "$DATA_DIR"} ${LIMIT:+--limit "$LIMIT"}
  ;;
lighteval)
  list="$here/$TASKS/doge_$TASKS.txt"
  command -v lighteval >/dev/null || { echo "error: lighteval is not installed: see evaluation/README.md." >&2; exit 2; }
  [ -f "$list" ] || { echo "error: there is no $list: set TASKS to base or instruct." >&2; exit 2; }
  lighteval accelerate "model_name=$MODEL" "$list" --output-dir "$OUTPUT_DIR" ${LIMIT:+--max-samples "$LIMIT"}
  ;;
*)
  echo "error: HARNESS is $HARNESS: choose lm-eval or lighteval." >&2
  exit 2
  ;;
esac
