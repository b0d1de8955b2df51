"""Batches trust the certificates that httpx trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi
import httpx
import pytest

from windback.http import certificates


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def one(tmp_path):
    """A file with one certificate."""
    pem, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
    path = tmp_path / "one.pem"
    path.write_text(pem + end, encoding="utf-8")
    return path


def test_names_and_certificates_are_checked_as_httpx_checks_them():
    ours, theirs = certificates.verifying(), httpx.create_ssl_context()
    assert ours.check_hostname
    assert ours.verify_mode is theirs.verify_mode is ssl.CERT_REQUIRED
    assert ours.get_ca_certs() == theirs.get_ca_certs() != []
    assert ours.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_file_of_the_environment_replaces_them(one, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(one))
    monkeypatch.setenv("SSL_CERT_DIR", "/nowhere")
    assert len(certificates.verifying().get_ca_certs()) == 1
    assert certificates.verifying().get_ca_certs() == httpx.create_ssl_context().get_ca_certs()


def test_a_folder_of_the_environment_replaces_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert certificates.verifying().get_ca_certs() == []  # a folder is read when a certificate is looked for


def test_a_file_that_is_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(OSError, match="No such file"):
        certificates.verifying()
