"""The log of a run, over kills and resumes."""

from __future__ import annotations

from fastselfie.training.metrics_log import RunLog, read_log


def test_lines_come_back_and_a_cut_line_is_left_out(tmp_path):
    with RunLog(tmp_path, "pretrain", 10, 0) as log:
        log.write(1, loss=2.0)
        log.write(2, loss=1.0)
    assert [(x["step"], x["loss"]) for x in read_log(tmp_path / "log.jsonl")] == [
        (1, 2.0),
        (2, 1.0),
    ]
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert len(read_log(tmp_path / "log.jsonl")) == 2


def test_a_damaged_line_hides_none_after_it(tmp_path):
    text = '{"step": 1}\n{"st\x00ep": \n[3]\n"x"\n{"loss": 1}\n{"step": 2}\n'
    (tmp_path / "log.jsonl").write_text(text)
    with RunLog(tmp_path, "pretrain", 10, 5):
        pass
    assert [x["step"] for x in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_a_resumed_run_writes_its_lines_once(tmp_path):
    with RunLog(tmp_path, "pretrain", 10, 0) as log:
        for step in range(1, 6):
            log.write(step, loss=float(step))
    with RunLog(tmp_path, "pretrain", 10, 3) as log:
        log.write(4, loss=40.0)
    lines = read_log(tmp_path / "log.jsonl")
    assert [(x["step"], x["loss"]) for x in lines] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_run_killed_before_its_first_checkpoint_begins_its_log_anew(tmp_path):
    for _ in range(2):
        with RunLog(tmp_path, "t", 10, start=0) as log:
            log.write(0, heldout_loss=1.0)
            log.write(1, loss=1.0)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [0, 1]


def test_an_owed_evaluation_is_in_the_log_once(tmp_path):
    """Killed after its line and before the checkpoint that says that it is done."""
    with RunLog(tmp_path, "t", 10, start=0) as log:
        log.write(2, loss=1.0)
        log.write(2, heldout_loss=1.5)
    with RunLog(tmp_path, "t", 10, start=2, evaluation_pending=True) as log:
        log.write(2, heldout_loss=1.5)
    lines = read_log(tmp_path / "log.jsonl")
    assert [set(line) & {"loss", "heldout_loss"} for line in lines] == [{"loss"}, {"heldout_loss"}]


def test_without_tensorboard_the_log_still_is(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with RunLog(tmp_path, "pretrain", 10, 0) as log:
        log.write(1, loss=2.0)
    assert len(read_log(tmp_path / "log.jsonl")) == 1
    assert not (tmp_path / "tensorboard").exists()
