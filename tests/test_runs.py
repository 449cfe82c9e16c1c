"""Runs go on with the settings they began with."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from backbones.mini import MiniVideo
from finetune.robot import RobotConfig
from para_video.checkpoint import WEIGHTS_FILE
from para_video.runs import (
    LOCK_FILE,
    RESUME,
    SETTINGS_FILE,
    check_processes,
    command_line,
    output_folder,
    per_process,
    same_settings,
    same_source,
    told_command,
)
from para_video.training import make_accelerator
from pretrain.circles import CirclesConfig
from pretrain.video import VideoConfig


def test_a_resume_with_other_settings_is_refused_and_free_ones_may_change(tmp_path):
    accelerator = make_accelerator("no")
    same_settings(tmp_path, CirclesConfig(size=64), free=("workers",), accelerator=accelerator)
    same_settings(tmp_path, CirclesConfig(size=64, workers=2), free=("workers",), accelerator=accelerator)
    before = (tmp_path / SETTINGS_FILE).read_bytes()
    with pytest.raises(ValueError, match="size was 64 and is 128"):
        same_settings(tmp_path, CirclesConfig(), free=("workers",), accelerator=accelerator)
    assert (tmp_path / SETTINGS_FILE).read_bytes() == before
    assert json.loads(before)["processes"] == 1


def test_a_resumed_run_has_its_own_options_and_may_be_given_them_again(tmp_path, monkeypatch):
    began = RobotConfig(
        task="push-v3", demo_folder=Path("mine"), policies="para", episodes=7, hide_hand=True, learning_rate=1e-3, out=tmp_path
    )
    free = ("out", "resume", "policies", "azimuths", "shifts", "episodes")
    same_settings(tmp_path, began, free=free, accelerator=make_accelerator("no"))
    here, got = ["--resume", "--out", str(tmp_path)], []
    for given, expected in (
        ([], replace(began, resume=True)),
        (["--hide-hand", "--task", "push-v3"], replace(began, resume=True)),
        (["--hide_hand"], replace(began, resume=True)),
        (["--episodes", "9"], replace(began, resume=True, episodes=9)),
        (["--demos", "6"], replace(began, resume=True, demos=6)),  # which `same_settings` refuses
    ):
        monkeypatch.setattr("sys.argv", ["robot.py", *given, *here])
        command_line(got.append, RobotConfig, "text")
        assert got[-1] == expected
    same_settings(tmp_path, got[3], free=free, accelerator=make_accelerator("no"))
    monkeypatch.setattr("sys.argv", ["robot.py", *here])
    command_line(got.append, RobotConfig, "text")
    assert got[-1].episodes == 7  # as it began: what it was resumed with may have been a mistake
    with pytest.raises(ValueError, match="demos was 5 and is 6"):
        same_settings(tmp_path, got[4], free=free, accelerator=make_accelerator("no"))


def test_a_command_is_told_by_the_options_that_are_not_usual():
    config = RobotConfig(policies="para", shifts="look=1; azimuth=-18", hide_hand=True, init=None, resume=True, out=Path("runs/a"))
    assert told_command("finetune/robot.py", config) == (
        "python finetune/robot.py --policies para --shifts 'look=1; azimuth=-18' --hide-hand"
    )
    assert "--demos 5" in told_command("finetune/robot.py", config, always=("demos",))
    config = VideoConfig(contexts=(1, 2), videos=Path("mine"))
    assert told_command("pretrain/video.py", config) == "python pretrain/video.py --videos mine --contexts 1 2"
    assert told_command("pretrain/circles.py", CirclesConfig()) == "python pretrain/circles.py"


def test_tuples_of_options_are_tuples_again(tmp_path, monkeypatch):
    began, got = VideoConfig(contexts=(1, 2), out=tmp_path), []
    same_settings(tmp_path, began, free=(), accelerator=make_accelerator("no"))
    monkeypatch.setattr("sys.argv", ["video.py", "--resume", "--out", str(tmp_path)])
    command_line(got.append, VideoConfig, "text")
    assert got == [replace(began, resume=True)]


def test_a_run_goes_on_when_an_option_has_come_since_and_is_off(tmp_path):
    accelerator, config = make_accelerator("no"), CirclesConfig()
    same_settings(tmp_path, config, free=(), accelerator=accelerator)
    settings = json.loads((tmp_path / SETTINGS_FILE).read_text())
    off, on = (next(name for name, value in settings.items() if bool(value) == wanted) for wanted in (False, True))
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({k: v for k, v in settings.items() if k != off}))
    same_settings(tmp_path, config, free=(), accelerator=accelerator)
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({k: v for k, v in settings.items() if k != on}))
    with pytest.raises(ValueError, match=f"{on} was None and is"):
        same_settings(tmp_path, config, free=(), accelerator=accelerator)


def test_several_processes_do_not_share_an_offloaded_model():
    for offload in ("model", "blocks"):
        with pytest.raises(ValueError, match=f"offload '{offload}' is for one process and there are 2, .* leave out \"offload\""):
            check_processes({"source": "x", "device": "cuda", "offload": offload}, 2)
        check_processes({"source": "x", "device": "cuda", "offload": offload}, 1)
    check_processes({"offload": "none"}, 2)


def test_a_run_does_not_go_on_from_another_start(tmp_path):
    accelerator, backbone = make_accelerator("no"), MiniVideo(width=8, channels=8, depth=1)
    start = tmp_path / "circles"
    start.mkdir()
    (start / WEIGHTS_FILE).write_bytes(b"first")
    same_settings(tmp_path, CirclesConfig(), free=(), accelerator=accelerator)
    for _ in range(2):
        same_source(tmp_path, backbone, [start], accelerator)
        same_settings(tmp_path, CirclesConfig(), free=(), accelerator=accelerator)
    moved = start.rename(tmp_path / "elsewhere")
    same_source(tmp_path, backbone, [moved], accelerator)
    start.mkdir()
    for other in (moved, start):
        (other / WEIGHTS_FILE).write_bytes(b"second")
        with pytest.raises(ValueError, match=rf"began with other weights than \['.*{other.name}'\] hold now"):
            same_source(tmp_path, backbone, [other], accelerator)


def test_a_run_does_not_go_on_with_other_demonstrations(tmp_path):
    accelerator, backbone, demos = make_accelerator("no"), MiniVideo(width=8, channels=8, depth=1), tmp_path / "demos"
    same_settings(tmp_path, CirclesConfig(), free=(), accelerator=accelerator)
    with pytest.raises(FileNotFoundError, match="no demo set"):
        same_source(tmp_path, backbone, [], accelerator, demos)
    demos.mkdir()
    index = {"format": 1, "demos": [], "settings": {}, "discarded": []}
    (demos / "demos.json").write_text(json.dumps(index))
    for _ in range(2):
        same_source(tmp_path, backbone, [], accelerator, demos)
        same_settings(tmp_path, CirclesConfig(), free=(), accelerator=accelerator)
    (demos / "demos.json").write_text(json.dumps({**index, "settings": {"other": 1}}))
    with pytest.raises(ValueError, match="began with other demonstrations than .*demos holds"):
        same_source(tmp_path, backbone, [], accelerator, demos)


@pytest.mark.parametrize(("old", "source"), [(True, True), (True, False), (False, True)])
def test_a_run_that_did_not_keep_its_source_goes_on_and_says_so_once(old, source, tmp_path, capsys):
    """old: whether it has content. source: whether its backbone has weights from one."""
    accelerator, backbone = make_accelerator("no"), MiniVideo(width=8, channels=8, depth=1)
    backbone.origin = {"weight": "digest"} if source else None
    same_settings(tmp_path, CirclesConfig(), free=(), accelerator=accelerator)
    if old:
        (tmp_path / "training.safetensors").write_bytes(b"work")
    said = []
    for _ in range(2):
        same_source(tmp_path, backbone, [], accelerator)
        said.append(capsys.readouterr().err)
    assert ("does not say on which weights this run began" in said[0]) == (old and source) and not said[1]


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        same_settings(tmp_path, CirclesConfig(), free=(), accelerator=make_accelerator("no"))


def test_a_batch_is_shared_out_evenly_or_refused():
    assert per_process(8, 2) == 4
    for batch_size, processes in ((8, 3), (0, 1), (-4, 2)):
        with pytest.raises(ValueError, match=f"batch_size {batch_size} must be"):
            per_process(batch_size, processes)


def test_a_start_that_failed_leaves_its_folder_free_and_content_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accelerator = make_accelerator("no")
    first = output_folder(None, "circles", resume=False, accelerator=accelerator)
    same_settings(first, CirclesConfig(), free=(), accelerator=accelerator)
    assert output_folder(None, "circles", resume=False, accelerator=accelerator) == first
    same_settings(first, CirclesConfig(size=64), free=(), accelerator=accelerator)
    (first / "training.safetensors").write_bytes(b"work")
    assert output_folder(None, "circles", resume=False, accelerator=accelerator) != first
    with pytest.raises(FileExistsError, match="add --resume"):
        output_folder(first, "circles", resume=False, accelerator=accelerator)
    assert (first / SETTINGS_FILE).is_file()


def test_a_folder_that_another_process_writes_to_is_taken(tmp_path, monkeypatch):
    """Although it holds nothing yet but what a start that failed would leave."""
    monkeypatch.chdir(tmp_path)
    accelerator, other = make_accelerator("no"), Path("runs/robot")
    other.mkdir(parents=True)
    (other / SETTINGS_FILE).write_text("{}")
    hold = """if True:
        import sys
        from filelock import FileLock
        with FileLock(sys.argv[1]):
            print("held", flush=True)
            sys.stdin.read()"""
    command = [sys.executable, "-c", hold, str(other / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert output_folder(None, "robot", resume=False, accelerator=accelerator) == Path("runs/robot-2")
        for resume in (False, True):
            with pytest.raises(FileExistsError, match="another run writes to runs/robot: wait until it has ended"):
                output_folder(other, "robot", resume=resume, accelerator=accelerator)
        process.communicate("")
    assert output_folder(other, "robot", resume=True, accelerator=accelerator) == other


def test_there_must_be_a_run_to_resume_and_its_settings_must_be_some(tmp_path):
    accelerator = make_accelerator("no")
    (tmp_path / "thesis.txt").write_text("not a run")
    for folder in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="--resume needs --out with the folder of the interrupted run"):
            output_folder(folder, "circles", resume=True, accelerator=accelerator)
    (tmp_path / SETTINGS_FILE).write_text("[1]")
    assert output_folder(tmp_path, "circles", resume=True, accelerator=accelerator) == tmp_path
    with pytest.raises(ValueError, match="settings.json is damaged"):
        same_settings(tmp_path, CirclesConfig(), free=(), accelerator=accelerator)


def test_a_command_tells_an_error_in_a_line_and_an_interrupt_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["circles.py", "--size", "64"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as of a script

    def wrong(config: CirclesConfig) -> None:
        raise FileNotFoundError(f"no file of size {config.size} [here]")

    def stopped(config: CirclesConfig) -> None:
        raise KeyboardInterrupt("circles stopped after step 3, which is saved")

    def cut(config: CirclesConfig) -> None:
        raise KeyboardInterrupt

    for main, code, told, *again in (
        (wrong, 2, "no file of size 64 [here]"),
        (stopped, 130, "after step 3, which is saved; go on with"),
        (cut, 130, "stopped; go on with the same command"),
        (cut, 130, "stopped; go on with python circles.py --resume --out 'my runs/a'", RESUME),
    ):
        monkeypatch.setattr("para_video.runs._LOCKS", {Path("my runs/a").resolve(): None})
        with pytest.raises(SystemExit) as end:
            command_line(main, CirclesConfig, "text", *again)
        said = capsys.readouterr().err
        assert end.value.code == code and told in said and said.count("\n") == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", "go on with the same command, in 2 processes again\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            command_line(cut, CirclesConfig, "text")
        assert capsys.readouterr().err.partition("; ")[2] == told
    monkeypatch.setenv("PARA_VIDEO_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        command_line(wrong, CirclesConfig, "text")
