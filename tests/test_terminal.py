"""What a stage prints: a ruled table on a terminal, plain columns in a pipe; and its metrics, as JSON."""

import json

from stages import show, write_json

ROWS = [
    {"name": "[bold]a", "top1_acc": 0.25, "collapsed": False},
    {"name": "b" * 200, "top1_acc": 1.0, "collapsed": True},
]


def test_piped_it_is_plain_and_nothing_is_cut(capsys):
    show("two [runs]", ROWS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["two", "[runs]"],
        [*ROWS[0]],
        ["[bold]a", "0.250", "False"],
        ["b" * 200, "1.000", "True"],
    ]


def test_a_terminal_gets_rules(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that there is one
    show("one run", ROWS[:1])
    assert "─" in capsys.readouterr().out


def test_what_is_undefined_is_null(tmp_path):
    written = write_json(
        tmp_path / "metrics.json",
        {"top1_acc": 0.5, "sd": {"top1_acc": float("nan")}, "ci95": (0, 1)},
    )
    assert written == {"top1_acc": 0.5, "sd": {"top1_acc": None}, "ci95": [0, 1]}
    assert json.loads((tmp_path / "metrics.json").read_text()) == written
