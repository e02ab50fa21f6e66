"""TLS from a certificate and a key file, with errors an operator can act on."""

from __future__ import annotations

import os
import ssl

from fcp_core.errors import UsageError


def server_context(
    certfile: str | os.PathLike[str], keyfile: str | os.PathLike[str] | None = None
) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and newer.

    :param certfile: PEM; the certificate, then its chain, and the key if *keyfile* is None.
    :param keyfile: PEM, without a passphrase.
    :raises UsageError: naming the file and what is wrong with it.
    """
    for role, path in (("certificate", certfile), ("key", keyfile)):
        if path is None:
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UsageError(
                f"the TLS {role} file {os.fspath(path)} cannot be read: {error.strerror}."
            ) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    key = os.fspath(keyfile or certfile)

    def no_passphrase() -> str:
        raise UsageError(
            f"the TLS key in {key} is protected by a passphrase; give the server one without."
        )

    try:
        context.load_cert_chain(certfile, keyfile, password=no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"the key in {key} does not belong to the certificate"
        else:
            problem = f"{error.reason or error}; both must be PEM, and the key must be there"
        raise UsageError(
            f"the TLS certificate {os.fspath(certfile)} with the key in {key} cannot be used: "
            f"{problem}."
        ) from None
    return context
