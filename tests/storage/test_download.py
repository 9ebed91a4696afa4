import hashlib
import http.client
import io
import urllib.request

import pytest

from dareu_jax.errors import UserError
from dareu_jax.storage.download import download

SHA256 = hashlib.sha256(b"text").hexdigest()


def test_a_file_is_downloaded_into_a_new_folder(tmp_path):
    (tmp_path / "public").write_bytes(b"text")
    file = tmp_path / "new" / "file"
    download((tmp_path / "public").as_uri(), file, SHA256, "do this")
    assert file.read_bytes() == b"text"
    assert list(file.parent.iterdir()) == [file]


class Broken(io.BytesIO):
    def read(self, *args):
        raise http.client.IncompleteRead(b"te", 2)


def test_a_connection_that_breaks_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Broken())
    with pytest.raises(UserError, match=r"download http://x .*Incomplete.*; do this"):
        download("http://x", tmp_path / "file", SHA256, "do this")
    assert list(tmp_path.iterdir()) == []
