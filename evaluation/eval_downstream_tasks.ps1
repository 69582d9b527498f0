# The downstream tasks of one checkpoint. What can be set beforehand, for instance with $env:MODEL = "...":
#   MODEL       checkpoint folder or hub id
#   OUTPUT_DIR  where results.json, results.md and results.png go
#   TASKS       base, instruct, or names by commas
#   DATA_DIR    folder of local task files; the hub if empty
#   LIMIT       most items of a task; all if empty
#   HARNESS     lm-eval, or lighteval with the lists beside this script (evaluation/README.md says what it needs)
$ErrorActionPreference = "Stop"

function Get-Setting([string]$Name, [string]$Default) {
    $value = [Environment]::GetEnvironmentVariable($Name)
    if ($value) { $value } else { $Default }
}

$MODEL = Get-Setting "MODEL" "SmallDoge/Doge-20M"
$OUTPUT_DIR = Get-Setting "OUTPUT_DIR" "./eval_results"
$TASKS = Get-Setting "TASKS" "base"
$DATA_DIR = Get-Setting "DATA_DIR" ""
$LIMIT = Get-Setting "LIMIT" ""
$HARNESS = Get-Setting "HARNESS" "lm-eval"

$bin = Join-Path $PSScriptRoot "../.venv/Scripts"
if (Test-Path (Join-Path $bin "small-doge.exe")) {
    $env:PATH = "$bin$([IO.Path]::PathSeparator)$env:PATH"
}

$options = @()
if ($HARNESS -eq "lm-eval") {
    if ($DATA_DIR) { $options += "--data-dir", $DATA_DIR }
    if ($LIMIT) { $options += "--limit", $LIMIT }
    small-doge eval $MODEL --tasks $TASKS --output $OUTPUT_DIR @options
}
elseif ($HARNESS -eq "lighteval") {
    if (-not (Get-Command lighteval -ErrorAction SilentlyContinue)) {
        throw "lighteval is not installed: see evaluation/README.md."
    }
    $list = Join-Path $PSScriptRoot "$TASKS/doge_$TASKS.txt"
    if (-not (Test-Path $list)) { throw "there is no ${list}: set TASKS to base or instruct." }
    if ($LIMIT) { $options += "--max-samples", $LIMIT }
    lighteval accelerate "model_name=$MODEL" $list --output-dir $OUTPUT_DIR @options
}
else {
    throw "HARNESS is ${HARNESS}: choose lm-eval or lighteval."
}
if ($LASTEXITCODE) { exit $LASTEXITCODE }
