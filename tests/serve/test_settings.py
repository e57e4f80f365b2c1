"""What a server may be told, and where its key comes from."""

import pytest

from sparsight.errors import ConfigError, StorageError
from sparsight.serve.settings import KEY_VARIABLE, Settings, is_loopback, read_api_key

KEY = "0123456789abcdef"


def test_only_loopback_goes_without_a_key():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.0.1", "::1", "localhost")] == [True] * 4
    for host in ("0.0.0.0", "::", "192.168.0.4", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match=f"needs an API key.*{KEY_VARIABLE}"):
            Settings(host=host)
        assert Settings(host=host, api_key=KEY).api_key == KEY


def test_the_key_is_never_shown():
    assert KEY not in repr(Settings(api_key=KEY))
    for bad in ("short", KEY + "ß", KEY + "\n"):
        with pytest.raises(ConfigError, match="at least 16 printable") as caught:
            Settings(api_key=bad)
        assert bad not in str(caught.value)


@pytest.mark.parametrize(
    "name, value",
    [("port", 70000), ("port", -1), ("max_body_bytes", 0), ("max_prompt_tokens", 0), ("max_running", 0), ("request_seconds", 0.0),
     ("body_seconds", float("nan")), ("max_waiting", -1), ("drain_seconds", -1.0)],
)  # fmt: skip
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        Settings(**{name: value})


def test_the_key_comes_from_the_file_else_the_environment(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_api_key(str(file), {KEY_VARIABLE: "other"}) == KEY
    assert read_api_key(None, {KEY_VARIABLE: "other"}) == "other"
    assert read_api_key(None, {}) is None and read_api_key(None, {KEY_VARIABLE: ""}) is None
    with pytest.raises(StorageError, match="cannot be read"):
        read_api_key(str(tmp_path / "none"))
    file.write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        read_api_key(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text"):
        read_api_key(str(file))
