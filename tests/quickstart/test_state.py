"""What the road has behind it is on disk, whole, whatever happens to the run."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from small_doge.quickstart.road import told_of_full_disk
from small_doge.quickstart.state import RoadState, write_json


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_finished_stage_is_known_to_the_next_start(tmp_path: Path) -> None:
    state = RoadState(tmp_path, {"seed": 1})
    state.begin("sft")
    assert not RoadState(tmp_path, {"seed": 1}).done("sft")
    state.begin("sft")
    state.finish("sft", {"loss": 2.0}, 3.14159)
    again = RoadState(tmp_path, {"seed": 1})
    assert again.done("sft")
    assert again.result("sft") == {"loss": 2.0}
    assert (again.values["seconds"], again.values["begun"]) == ({"sft": 3.1}, {"sft": 2})


def test_other_settings_are_refused(tmp_path: Path) -> None:
    RoadState(tmp_path, {"seed": 1}).begin("data")
    with pytest.raises(ValueError, match="name another folder with --out"):
        RoadState(tmp_path, {"seed": 2})


def test_a_full_disk_leaves_the_state_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = RoadState(tmp_path, {"seed": 1})
    state.finish("data", {}, 1.0)
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        state.finish("sft", {}, 1.0)
    monkeypatch.undo()
    assert RoadState(tmp_path, {"seed": 1}).done("data")
    assert not RoadState(tmp_path, {"seed": 1}).done("sft")


def test_a_full_disk_is_one_line_with_the_mend(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="full in the stage data: free some space and run again") as error,
        told_of_full_disk("data", tmp_path),
    ):
        full_disk()
    assert "\n" not in str(error.value)


def test_what_a_stage_itself_says_of_a_full_disk_is_left_as_it_is(tmp_path: Path) -> None:
    told = OSError(errno.ENOSPC, "the disk is full while saving checkpoint-8: free some space; checkpoint-7 is safe")
    for error in (told, OSError(errno.EACCES, "Permission denied")):
        with pytest.raises(OSError, match=r"safe|denied") as caught, told_of_full_disk("sft", tmp_path):
            raise error
        assert caught.value is error


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
