"""What every test gets."""

from __future__ import annotations

import datetime
import ipaddress
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from fcp_core.testing.aggregators import AggregatorConformance
from fcp_core.testing.kit import Conformance
from fcp_core.testing.storage import StorageConformance


def pytest_configure(config: pytest.Config) -> None:
    """Let the quick part of the suite try fewer examples of each law of the kits."""
    if config.getoption("markexpr") == "not slow":
        AggregatorConformance.max_examples = 3
        Conformance.max_examples = 3
        quick = settings(StorageConformance.settings, max_examples=10)
        StorageConformance.settings = quick  # type: ignore[misc]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what programs leave in the user's cache folder away from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a command that ran in this process did to the loggers."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.startswith("fcp") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority, a server's and two clients' certificates."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    addresses = [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1")]
    here = [x509.DNSName("localhost"), *map(x509.IPAddress, addresses)]
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)

    def name(text: str) -> Any:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def usage(of_authority: bool) -> Any:
        return x509.KeyUsage(
            digital_signature=not of_authority,
            key_cert_sign=of_authority,
            crl_sign=of_authority,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )

    def make(common_name: str, issuer: tuple[str, Any] | None = None) -> tuple[str, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        ca_name, ca_key = issuer or (common_name, key)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name(common_name))
            .issuer_name(name(ca_name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
            .add_extension(x509.SubjectAlternativeName(here), critical=False)
            # Python 3.13 and newer insist on these three.
            .add_extension(usage(issuer is None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        data = certificate.public_bytes(pem) + key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{common_name}.pem").write_bytes(data)
        return common_name, key

    authority = make("authority")
    for common_name in ("server", "operator", "device"):
        make(common_name, authority)
    return folder
