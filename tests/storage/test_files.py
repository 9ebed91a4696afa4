"""One way to write a file whole."""

from pathlib import Path

import pytest

from dareu_jax.storage.files import whole_folder, write_json, write_whole


@pytest.fixture
def full(monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    return lambda *what: monkeypatch.setattr(*what, no_space)


def test_a_file_is_written_into_a_new_folder(tmp_path):
    file = tmp_path / "new" / "file"
    write_whole(file, b"text")
    assert file.read_bytes() == b"text"
    assert list(file.parent.iterdir()) == [file]


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_whole(path, "lone \ud800, 河")
    assert path.read_text(encoding="utf-8") == "lone ?, 河"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", [("os.fsync",), (Path, "replace")])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_draft(tmp_path, full, what):
    path = tmp_path / "report.html"
    path.write_text("old")
    full(*what)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_value_that_is_no_number(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_has_made_stays(tmp_path):
    out = tmp_path / "in" / "tokenizer"
    with whole_folder(out) as draft:
        (draft / "a").write_text("mine")
        out.mkdir()
        (out / "a").write_text("theirs")
    assert (out / "a").read_text() == "theirs"
    assert list(out.parent.iterdir()) == [out]
