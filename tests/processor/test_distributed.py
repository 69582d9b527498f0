from __future__ import annotations

import gzip
import os
import stat
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("datatrove", reason="needs datatrove: install the `data` extra")

from small_doge.processor.distributed import EncodeFiles, encoded_path, prepare_distributed
from small_doge.processor.prepare import checked_settings, prepare
from small_doge.processor.report import Report


def every_byte(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def recipe(text_file, tokenizer, tmp_path):
    """A recipe of two sources in several files, with duplicates, bad rows and a part too short."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name, count in (("a/0.jsonl", 60), ("a/1.jsonl", 80), ("b/0.jsonl", 70), ("b/1.jsonl", 90)):
        path = Path(text_file(name, count, words=(5, 120)))
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join([*lines[:20], "{broken\n", '{"text": 3}\n', *lines]), encoding="utf-8")
    settings = {
        "stage": "pt",
        "output": str(tmp_path / "out"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "datasets_and_ratios": [{f"{tmp_path}/a": 0.6}, {f"{tmp_path}/b/*.jsonl": 0.4}],
        "max_length": 128,
        "test_share": 0.05,
        "quality": {"exact_duplicates": True, "min_characters": 120, "repetition": True},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def on_one_machine(recipe, tmp_path):
    prepare(recipe, {"output": str(tmp_path / "out")})
    made = every_byte(tmp_path / "out")
    assert Report.load(tmp_path / "out").dropped[f"{tmp_path}/a"]["exact duplicate"] > 20
    assert Report.load(tmp_path / "out").dropped[f"{tmp_path}/a"]["unreadable line"] == 2
    return made


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_local_executor_makes_what_one_process_makes(recipe, on_one_machine, tmp_path, tasks):
    folder = prepare_distributed(recipe, "local", tasks=tasks, workers=1)
    assert every_byte(folder) == on_one_machine


def test_a_part_of_the_rows_is_the_same_part_with_the_same_report(recipe, tmp_path):
    size = {"total_sample_size": 20}
    prepare(recipe, size)
    alone = every_byte(tmp_path / "out")
    assert every_byte(prepare_distributed(recipe, "local", tasks=2, workers=1, overrides=size)) == alone


def test_what_is_noted_in_reading_is_in_the_report(recipe, tmp_path):
    broken = tmp_path / "a" / "2.jsonl.gz"
    broken.write_bytes(gzip.compress((tmp_path / "a" / "1.jsonl").read_bytes())[:-9])
    source = f"{tmp_path}/a"
    change = {"datasets_and_ratios": [{source: 1.0}], "source_options": {source: {"on_truncated": "keep"}}}
    prepare(recipe, change)
    alone = every_byte(tmp_path / "out")
    assert "breaks off" in Report.load(tmp_path / "out").notes[0]
    assert every_byte(prepare_distributed(recipe, "local", tasks=2, workers=1, overrides=change)) == alone


def test_files_encoded_before_a_failure_are_not_encoded_again(recipe, on_one_machine, tmp_path):
    settings = checked_settings(recipe, None)
    list(EncodeFiles(settings).run(rank=0, world_size=2))
    done = [encoded_path(settings, number) for number in range(4)]
    assert [path.exists() for path in done] == [True, False, True, False]
    before = done[0].stat().st_mtime_ns
    list(EncodeFiles(settings).run(rank=0, world_size=1))
    assert done[0].stat().st_mtime_ns == before
    assert all(path.exists() for path in done)
    assert every_byte(prepare_distributed(recipe, "local", tasks=2, workers=1)) == on_one_machine


@pytest.mark.parametrize(
    ("executor", "changes", "mend"),
    [
        ("spark", {}, "give one of local, slurm, ray"),
        ("local", {"stage": "ft"}, "use `prepare` for this one"),
        ("local", {"quality": {"near_duplicates": True}}, "MinHash blocks before"),
    ],
    ids=["unknown executor", "fine-tuning recipe", "near duplicates"],
)
def test_what_cannot_run_on_many_machines_is_refused(recipe, executor, changes, mend):
    with pytest.raises(ValueError, match=mend):
        prepare_distributed(recipe, executor, overrides=changes)


@pytest.mark.slow
def test_ray_with_two_workers_makes_what_one_process_makes(recipe, on_one_machine):
    ray = pytest.importorskip("ray", reason="needs ray: install the `data` extra")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        folder = prepare_distributed(recipe, "ray", tasks=2, workers=2, mem_per_cpu_gb=0.5)
    finally:
        ray.shutdown()
    assert every_byte(folder) == on_one_machine


SBATCH = """#!/bin/bash
# Stands in for Slurm: runs the array of a job at once, one task after another.
for argument; do script=$argument; done
count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
echo "$@" >> "$(dirname "$0")/submitted"
export SLURM_JOB_ID=7 SLURM_NODELIST=localhost RUN_OFFSET=0
for task in $(seq 0 "$count"); do
    SLURM_ARRAY_TASK_ID=$task bash "$script" >> "$(dirname "$0")/log" 2>&1
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.mark.slow
def test_slurm_jobs_make_what_one_process_makes(recipe, on_one_machine, tmp_path, monkeypatch):
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n")):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{stand_ins}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    folder = prepare_distributed(recipe, "slurm", tasks=2, time="01:00:00", partition="cpu")
    assert (folder / "dataset_dict.json").exists(), (stand_ins / "log").read_text()[-3000:]
    assert every_byte(folder) == on_one_machine
    assert "--dependency=afterok:7" in (stand_ins / "submitted").read_text()
