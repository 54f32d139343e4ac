"""What the tests of a comparison ask of its folder."""

import json

from fedsb import RunConfig

RATES = [0.01, 0.03]
TWO = ("--methods", "fed-sb,fedit", "--seeds", "0,1")


def document(folder):
    return json.loads((folder / "comparison.json").read_text())


def lasting(folder):
    """comparison.json without wall-clock times."""
    content = document(folder)
    for run in content["runs"]:
        del run["seconds"]
    return content


def config_of(folder):
    return RunConfig.from_yaml(folder / "config.yaml")


def assert_refused(answer, parts):
    """Exit status 2 and one message on stderr that holds all the parts."""
    status, _, err = answer
    assert status == 2, err
    assert err.startswith("error:")
    assert err.count("error:") == 1
    assert "not expected" not in err
    for part in parts:
        assert part in err, f"{part!r} is not in: {err}"
