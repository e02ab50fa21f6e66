"""Certificates of tests, and their keys."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
HERE = [
    x509.DNSName("localhost"),
    *(x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")),
]


def usage(of_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=of_authority,
        crl_sign=of_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_certificate(
    folder: Path, name: str, issuer: Any = None, *, days: tuple[int, int] = (-1, 1)
) -> Any:
    """Write ``name.crt``, a certificate, ``name.key``, its key, and both as ``name.pem``.

    :param issuer: what this function returned for the authority; None for one that signs itself.
    :param days: since when and until when it is valid, in days from now.
    :returns: what signs others; its second part is the key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer, signer_key = issuer or (subject, key)
    now = datetime.datetime.now(datetime.timezone.utc)
    since, until = (now + datetime.timedelta(days=number) for number in days)
    public, of_signer = key.public_key(), signer_key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(HERE), critical=False)
        # Python 3.13 and newer insist on these three.
        .add_extension(usage(issuer is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(of_signer), critical=False
        )
        .sign(signer_key, hashes.SHA256())
        .public_bytes(PEM)
    )
    secret = key.private_bytes(PEM, PKCS8, serialization.NoEncryption())
    (folder / f"{name}.crt").write_bytes(certificate)
    (folder / f"{name}.key").write_bytes(secret)
    (folder / f"{name}.pem").write_bytes(certificate + secret)
    return subject, key
