"""The options of ``[fcp:server]`` and ``[fcp:admin]``: ``fcp serve`` and its admin API."""

from __future__ import annotations

from typing import Any

from fcp_core.plugins.registry import OptionRegistry


def add_server_options(options: OptionRegistry) -> None:
    """Declare the options of the stand-alone server and its admin API."""

    def server(name: str, type: str, default: Any, help: str, minimum: float | None = None) -> None:
        options.add("server", name, type, default, help, minimum=minimum)

    server("host", "str", "localhost", "what 'fcp serve' listens on; '*' is every interface")
    server("port", "int", 8080, "its port; 0 takes a free one", 0)
    server("processes", "int", 1, "processes that serve as one", 1)
    server("populations", "list", (), "the only populations; none: those that tasks are for")
    server("certfile", "path", None, "a PEM certificate; with one it speaks HTTPS only")
    server("keyfile", "path", None, "the certificate's key, if that is in a file of its own")
    text = "host:port where other members reach it, on a private network; of a shared storage only"
    server("member_address", "str", None, text)
    server("external_url", "str", None, "where devices reach it, if not where it listens")

    def admin(name: str, type: str, default: Any, help: str, secret: bool = False) -> None:
        options.add("admin", name, type, default, help, secret=secret)

    admin("token_file", "path", None, "a file with the token that the admin API asks for")
    admin("token", "str", None, "that token itself; better from the environment", secret=True)
    names = "common names of client certificates that open the admin API as the token does"
    admin("certificate_names", "list", (), names)
    admin("url", "str", "http://localhost:8080/", "the server that 'fcp tasks' talks to")
    admin("ca_file", "path", None, "PEM certificates to trust instead of the system's")
    admin("client_certfile", "path", None, "a PEM certificate that 'fcp tasks' shows")
    admin("client_keyfile", "path", None, "its key, if that is in a file of its own")
