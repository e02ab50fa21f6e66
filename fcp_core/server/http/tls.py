"""TLS from a certificate and a key file, with errors an operator can act on."""

from __future__ import annotations

import logging
import os
import ssl
import time
from typing import TYPE_CHECKING, Any

from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config

logger = logging.getLogger("fcp.server")

#: OpenSSL's codes of a certificate that is not valid yet, or not any more.
_UNTIMELY = (9, 10)
#: A certificate that ends within so many seconds is warned of, unless it was made for days only...
SOON = 3 * 86400
#: ... so that this part of its time is left.
LEFT = 1 / 3


class ServerTLS:
    """What HTTPS is served with; :meth:`reload` reads the same files again.

    The parameters are those of :func:`server_context`.

    :ivar context: for the sockets; it stays the same.
    :raises UsageError: as :func:`server_context`.
    """

    def __init__(
        self,
        certfile: str | os.PathLike[str],
        keyfile: str | os.PathLike[str] | None = None,
        client_ca: str | os.PathLike[str] | None = None,
        *,
        required: bool = True,
    ) -> None:
        self._files = (certfile, keyfile, client_ca)
        self._required = required
        self.context = server_context(*self._files, required=required)

    def reload(self) -> None:
        """Serve new connections with what is in the files now.

        A certificate that signed those of clients, and is gone from its file, is trusted until the
        server is started again; of two revocation lists of one authority the newer one counts.

        :raises UsageError: if that cannot be used; nothing is changed then.
        """
        server_context(*self._files, required=self._required)
        certfile, keyfile, client_ca = self._files
        self.context.load_cert_chain(certfile, keyfile)
        if client_ca is not None:
            _trust(self.context, client_ca)


class MemberTLS:
    """TLS between members: each shows a certificate that an authority of theirs alone has signed.

    The names in the certificates are not looked at: whoever has one is a member.

    :param certfile: PEM; the certificate, and the key if *keyfile* is None.
    :param ca: PEM; the certificates of that authority.
    :ivar client: for calls of other members; it stays the same, as ``server.context`` does.
    :raises UsageError: as :func:`server_context`.
    """

    def __init__(self, certfile: str, keyfile: str | None, ca: str) -> None:
        self._files = (certfile, keyfile, ca)
        self.server = ServerTLS(certfile, keyfile, ca)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client.minimum_version = ssl.TLSVersion.TLSv1_2
        self.client.check_hostname = False
        self._load()

    @classmethod
    def from_config(cls, config: Config) -> MemberTLS | None:
        """Return what is configured, or None for plain HTTP.

        :raises UsageError: if it cannot be used.
        """
        certfile, keyfile, ca = (config.get(f"member_{n}") for n in ("certfile", "keyfile", "ca"))
        if certfile is not None and ca is not None:
            return cls(certfile, keyfile, ca)
        if (certfile, keyfile, ca) == (None, None, None):
            return None
        raise UsageError(
            "TLS between members needs both member_certfile and member_ca: the certificate of this "
            "one, and that of the authority which signs those of all."
        )

    def reload(self) -> None:
        """Show and trust what is in the files now, in new connections.

        :raises UsageError: if that cannot be used; nothing is changed then.
        """
        self.server.reload()
        self._load()

    def _load(self) -> None:
        certfile, keyfile, ca = self._files
        self.client.load_cert_chain(certfile, keyfile)
        _trust(self.client, ca)


def server_context(
    certfile: str | os.PathLike[str],
    keyfile: str | os.PathLike[str] | None = None,
    client_ca: str | os.PathLike[str] | None = None,
    *,
    required: bool = True,
) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and newer.

    :param certfile: PEM; the certificate, then its chain, and the key if *keyfile* is None.
    :param keyfile: PEM, without a passphrase.
    :param client_ca: PEM; the certificates that sign those of clients, and their revocation lists
        if there are any. None: clients show none.
    :param required: refuse a client without one; otherwise only those with a bad one are.
    :raises UsageError: naming the file and what is wrong with it.
    """
    _check_readable(certfile, keyfile, client_ca)
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
    if (fault := _untimely(certfile, context)) is not None:
        logger.warning("the TLS certificate %s: %s", os.fspath(certfile), fault)
    if client_ca is not None:
        try:
            _trust(context, client_ca)
        except ssl.SSLError as error:
            raise UsageError(
                f"the TLS client CA file {os.fspath(client_ca)} cannot be used: "
                f"{error.reason or error}; it must have PEM certificates."
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _trust(context: ssl.SSLContext, path: str | os.PathLike[str]) -> None:
    """Trust what the certificates of a file signed, but for what its revocation lists name."""
    context.load_verify_locations(path)
    if context.cert_store_stats()["crl"]:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _untimely(certfile: str | os.PathLike[str], server: ssl.SSLContext) -> str | None:
    """Return what is wrong with a certificate's dates, as a sentence goes on, or None.

    A client in memory that trusts it looks at it: the standard library reads no dates by itself.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The certificate itself is trusted, not who signed it.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certfile)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    for _ in range(4):
        for each in ends:
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                message = f"devices refuse it: {error.verify_message}"
                return message if error.verify_code in _UNTIMELY else None
            except ssl.SSLError:
                return None
    found: Any = ends[0].getpeercert() or {}
    begin, end = (ssl.cert_time_to_seconds(found[key]) for key in ("notBefore", "notAfter"))
    left = end - time.time()
    if left >= min(SOON, LEFT * (end - begin)):
        return None
    return f"it ends in {left / 3600:.0f} hours ({found['notAfter']}); devices refuse it then"


def _check_readable(
    certfile: str | os.PathLike[str],
    keyfile: str | os.PathLike[str] | None,
    client_ca: str | os.PathLike[str] | None,
) -> None:
    """Refuse files that cannot be read.

    :raises UsageError: naming the file.
    """
    for role, path in (
        ("certificate", certfile),
        ("key", keyfile),
        ("client CA", client_ca),
    ):
        if path is None:
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UsageError(
                f"the TLS {role} file {os.fspath(path)} cannot be read: {error.strerror}."
            ) from None
