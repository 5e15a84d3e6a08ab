"""Making a course: what a teacher has set stays, and folders that cannot be are told in one sentence."""

import sys

import pytest
from course import build


def test_the_teacher_s_settings_survive_a_rebuild(tmp_path, capsys):
    build.course(tmp_path)
    settings = tmp_path / "nbgrader_config.py"
    shipped = settings.read_text()
    settings.write_text(shipped + "c.Judge.total = 33.0\n")
    (tmp_path / "grading.py").write_text("old")
    assert capsys.readouterr().out == ""
    build.course(tmp_path)
    assert settings.read_text() == shipped + "c.Judge.total = 33.0\n"
    assert (tmp_path / "grading.py").read_text() != "old"
    assert f"{settings} differs" in capsys.readouterr().out
    settings.unlink()
    build.course(tmp_path)
    assert settings.read_text() == shipped


def test_a_folder_that_cannot_be_is_told_in_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("")
    monkeypatch.setattr(sys, "argv", ["build.py", str(tmp_path / "text.txt")])
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("No course can be made in ")
    assert said.count("\n") == 1
