"""Where devices reach a server that listens on every interface and was not told its address.

Each call says by its ``Host`` how its device reached the server, and only that device's answers are
made of it. Calls go on at the prefix ``/``, which clients since August 2024 take for the host that
they use already. A download needs a whole address, and published clients take ``https`` only, but
for ``http://localhost:``.
"""

from __future__ import annotations

import ipaddress
import re
from contextvars import ContextVar

#: What the call in progress says in ``Host`` and in ``X-Forwarded-Proto``.
HOST: ContextVar[tuple[str, str]] = ContextVar("fcp_host", default=("", ""))

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


class HostAddress:
    """Says where the device of the call in progress reaches the server.

    :param port: what it listens on, for a call that does not say.
    :param secure: whether it speaks HTTPS.
    """

    def __init__(self, port: int, *, secure: bool) -> None:
        self._local = f"localhost:{port}"
        self._secure = secure

    def base_url(self) -> str:
        """Return where calls go on, with a slash at the end."""
        return self.data_url() if self._host()[1] == "localhost" else "/"

    def data_url(self) -> str:
        """Return what stands in front of ``data/``, with a slash at the end."""
        host, name = self._host()
        forwarded = HOST.get()[1].strip().lower()
        if forwarded in ("http", "https"):
            scheme = forwarded
        elif self._secure:
            scheme = "https"
        else:
            # A name that is not this machine's is that of something in front that speaks HTTPS.
            scheme = "http" if name == "localhost" or _is_address(name) else "https"
        return f"{scheme}://{host}/"

    def _host(self) -> tuple[str, str]:
        """Return the host with its port, and its name alone."""
        host = HOST.get()[0]
        found = _HOST.fullmatch(host)
        if found is None:
            host, name = self._local, "localhost"
        else:
            name = found[1].lower()
        return host, name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
