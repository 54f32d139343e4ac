"""What a node keeps of a run: under a name that is none of the server's paths, for its own eyes."""

import os

import pytest

from fedsb.deploy.node_config import Refused
from fedsb.deploy.node_folder import make_private, run_folder
from fedsb.errors import InputError

BAD_NAMES = ["", ".", "..", "r1", "../../x", "/etc/x", "a\0b", "x" * 300, "A" * 32, "0" * 31, "0" * 33]
BAD_NAMES += ["0" * 32 + "\n", "\n" + "0" * 32, "٠" * 32, "0" * 30 + "/.", "..%2f" + "0" * 27]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_run_name_that_is_not_32_hexadecimal_digits_is_refused(tmp_path, name):
    with pytest.raises(Refused, match="run: expected a name of 32 hexadecimal digits"):
        run_folder(str(tmp_path), name)


def test_a_folder_is_for_this_user_alone(tmp_path):
    before = os.umask(0o000)
    try:
        folder = run_folder(str(tmp_path / "state"), "0123456789abcdef" * 2)
        assert not folder.exists()
        make_private(folder)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (folder.parent, folder)]
    assert modes == [0o700, 0o700]
    folder.chmod(0o755)
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_no_link_is_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ("b" * 32)).symlink_to(elsewhere)
    with pytest.raises(InputError, match="found a link"):
        make_private(run_folder(str(tmp_path), "b" * 32))
