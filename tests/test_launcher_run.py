from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from pgplan.errors import LaunchError
from pgplan.launcher import Event, State, launch, start


@pytest.fixture(autouse=True)
def logs_of_failed_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_has_its_place(ranks: int) -> None:
    names = ["COLOUR", "LOCAL_RANK", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"]
    result = launch(
        "launcher_entries:tell", ranks=ranks, backend="gloo", env={"COLOUR": "green"}, args={"names": names}
    )
    assert result.backend == "gloo"
    for rank, seen in enumerate(result.results):
        assert (seen["rank"], seen["world_size"], seen["backend"], seen["device"]) == (
            rank,
            ranks,
            "gloo",
            "cpu",
        )
        assert seen["ranks"] == list(range(ranks))
        assert seen["parent"] == os.getpid()
        assert seen["session"] == seen["pid"]
        assert not seen["torch"]
        assert seen["env"] == dict(zip(names, ["green", str(rank), "lo", "lo"], strict=True))


def test_auto_takes_gloo_without_gpus_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = launch("launcher_entries:echo", ranks=1, backend="auto", args={"value": 1}, show="terminal")
    assert (result.backend, result.backend_why) == ("gloo", "gloo, because for nccl no NVIDIA GPU is visible")
    assert result.backend_why in "".join(capsys.readouterr())


def test_a_torchrun_around_us_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "7")
    names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"]
    (seen,) = launch("launcher_entries:tell", ranks=1, args={"names": names}).results
    assert set(seen["env"].values()) == {None}


@pytest.mark.parametrize("value", [None, 1.5, "x", [1, {"a": [True]}], "a" * 3_000_000])
def test_data_comes_back_as_it_went(value: object) -> None:
    assert launch("launcher_entries:echo", ranks=2, args={"value": value}).results == (value, value)


def test_a_result_that_is_no_data_is_the_rank_s_failure() -> None:
    with pytest.raises(LaunchError, match=r"in phase 'result' .*MessageError: .* travel as JSON.* set "):
        launch("launcher_entries:give_a_set", ranks=1)


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("launcher_entries:nobody", "AttributeError: module 'launcher_entries' has no attribute 'nobody'"),
        ("no_such_module:main", "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "launcher_entries:__name__",
            "TypeError: entry 'launcher_entries:__name__' is a str, not a function",
        ),
    ],
)
def test_an_entry_that_is_not_there_fails_in_its_import(entry: str, cause: str) -> None:
    with pytest.raises(LaunchError) as caught:
        launch(entry, ranks=2)
    assert (caught.value.failures[0].phase, caught.value.failures[0].cause) == ("import", cause)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"entry": "nocolon"}, "entry is 'nocolon'; give 'module:function'"),
        ({"entry": "__main__:cell"}, "which no other process can import; write it into a module"),
        ({"ranks": 0}, "ranks is 0; give 1 or more"),
        ({"timeout": 0}, "timeout is 0 s"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        launch(**{"entry": "launcher_entries:echo", "ranks": 1, **wrong})  # type: ignore[arg-type]


def test_events_tell_the_whole_life() -> None:
    heard: list[Event] = []
    run = start("launcher_entries:count", ranks=2, args={"steps": 1000}, on_event=heard.append)
    result = run.wait()
    assert result.results == (1000, 1000)
    assert run.events == tuple(heard)
    assert result.wall_s >= heard[-1].time_s  # both count from the call
    assert [event.text for event in heard if event.kind == "state"] == list(map(str, (
        State.STARTING, State.RUNNING, State.FINISHING, State.ENDED)))  # fmt: skip
    for rank in range(2):
        phases = [event.text for event in heard if (event.kind, event.rank) == ("phase", rank)]
        assert phases == ["import", "run", "counting", "result", "exit"]
        progress = [event for event in heard if (event.kind, event.rank) == ("progress", rank)]
        # A thousand quick steps are told in part, the last one always.
        assert len(progress) < 500 and (progress[-1].step, progress[-1].total) == (1000, 1000)
        assert progress[-1].data == {"unit": "sheep"}
    assert [event.time_s for event in heard] == sorted(event.time_s for event in heard)


def test_a_run_can_be_cancelled_from_anywhere_at_any_time() -> None:
    run = start("launcher_entries:sleep", ranks=2, args={"seconds": 60})
    thread = threading.Thread(target=run.cancel)
    thread.start()
    thread.join()
    for _ in range(2):
        with pytest.raises(LaunchError, match="sleep was cancelled; its 2 ranks have been ended"):
            run.wait()
    run.cancel()
    assert run.state is State.ENDED


def test_a_run_outlives_the_thread_that_started_it() -> None:
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(start("launcher_entries:sleep", ranks=2, args={"seconds": 0.5}))
    )
    thread.start()
    thread.join()
    assert runs[0].wait().results == (None, None)


def test_logs_are_kept_where_asked_and_after_a_failure(tmp_path: Path) -> None:
    launch("launcher_entries:echo", ranks=2, args={"value": 0}, log_dir=tmp_path / "logs")
    assert (tmp_path / "logs" / "rank1.log").read_text() == "rank 1 prints\n"
    with pytest.raises(LaunchError) as caught:
        launch("launcher_entries:give_a_set", ranks=1)
    kept = Path(caught.value.__notes__[-1].removeprefix("Logs: "))
    assert "MessageError" in (kept / "rank0.log").read_text()
    assert kept.parent == tmp_path


def test_the_terminal_shows_a_bar_for_each_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch("launcher_entries:count", ranks=2, args={"steps": 3}, show="terminal")
    printed, shown = capsys.readouterr()
    assert printed == "" and shown.startswith("backend: ") and "rank 0" not in shown  # no terminal, no bars
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    launch("launcher_entries:count", ranks=2, args={"steps": 3}, show="terminal")
    printed, shown = capsys.readouterr()
    assert printed == "" and "rank 0 counting" in shown and "rank 1 done" in shown and "3/3" in shown
    launch("launcher_entries:count", ranks=2, args={"steps": 3})
    assert capsys.readouterr() == ("", "")


def test_the_notebook_shows_a_line_for_each_rank() -> None:
    from pgplan.launcher.show import NotebookLines

    lines = NotebookLines(ranks=2, backend_why="gloo, as asked")
    run = start("launcher_entries:count", ranks=2, args={"steps": 3}, on_event=lines)
    run.wait()
    title, *ranks = lines.box.children
    assert title.value == "backend: gloo, as asked"
    assert [
        (bar.value, bar.max, bar.bar_style, text.value) for bar, text in (line.children for line in ranks)
    ] == [(3, 3, "success", "done")] * 2
    lines(Event(kind="error", time_s=0.0, rank=1, text="ValueError: no"))
    bar, text = ranks[1].children
    assert (bar.bar_style, text.value) == ("danger", "failed: ValueError: no")
