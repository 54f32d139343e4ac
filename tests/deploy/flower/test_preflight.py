"""What the start scripts look at before they start anything."""

import socket
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from run_helpers import main_status

from fedsb.deploy.preflight import check_certificate, check_port
from fedsb.errors import InputError


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Valid for 30 days from now."""
    folder = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key"]
    command = ["openssl", "req", "-x509", *key, "-subj", "/CN=x", "-days", "30", "-out", "server.crt"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "server.crt"


def test_a_certificate_is_looked_at_for_its_dates(certificate):
    now = datetime.now(UTC)
    assert check_certificate(certificate) is None
    assert "expires in 9 days" in check_certificate(certificate, now + timedelta(days=20))
    with pytest.raises(InputError, match=r"expired on .*make-certificates.sh --renew"):
        check_certificate(certificate, now + timedelta(days=31))
    with pytest.raises(InputError, match=r"valid from .*set the clock"):
        check_certificate(certificate, now - timedelta(days=1))


def test_what_is_no_certificate(tmp_path, certificate):
    with pytest.raises(InputError, match=r"ca.crt: no such certificate"):
        check_certificate(tmp_path / "ca.crt")
    with pytest.raises(InputError, match=r"key: expected a certificate in PEM form"):
        check_certificate(certificate.parent / "key")


def test_a_taken_port_is_named(monkeypatch, certificate, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1: .*[Aa]ddress already in use"):
            check_port("127.0.0.1", port)
        told = ("deploy", "preflight", "--port", port, "--certificate", certificate)
        assert main_status(monkeypatch, *told) == 2
        assert f"port {port}" in capsys.readouterr().err
    check_port("127.0.0.1", port)
