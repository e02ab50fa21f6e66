"""``fcp serve``: a server that runs until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fcp_core.server.server import Server

logger = logging.getLogger("fcp.server")


@click.command()
@click.option("--host", help="What to listen on; '*' is every interface [default: localhost].")
@click.option("--port", type=int, help="The port; 0 takes a free one [default: 8080].")
@click.option(
    "--population", "populations", multiple=True, help="The only populations; may be repeated."
)
@click.option("--certfile", type=click.Path(dir_okay=False), help="A PEM certificate: HTTPS only.")
@click.option("--keyfile", type=click.Path(dir_okay=False), help="The certificate's key.")
@click.option("--external-url", help="Where devices reach the server, if not where it listens.")
@click.option("--processes", type=int, help="How many processes serve together [default: 1].")
@click.option(
    "--admin-token-file",
    type=click.Path(dir_okay=False),
    help="A file with the token that the admin API asks for.",
)
@click.option("--dashboard", is_flag=True, help="Serve the pages of fcp-server-dashboard.")
@click.option("--storage", help="Where tasks are kept [default: sqlite].")
@click.pass_obj
def serve(
    invocation: Any,
    /,
    populations: tuple[str, ...],
    admin_token_file: str | None,
    storage: str | None,
    dashboard: bool,
    **given: Any,
) -> None:
    """Serve devices and the admin API until SIGTERM or SIGINT; SIGHUP reads certificates again.

    The options are those of [fcp:server] and win over it. Tasks and results are kept in an SQLite
    file unless another storage is chosen: a server that is started again goes on with them.
    """
    overrides = {f"server.{name}": value for name, value in given.items() if value is not None}
    if populations:
        overrides["server.populations"] = list(populations)
    if admin_token_file is not None:
        overrides["admin.token_file"] = admin_token_file
    if storage is not None:
        overrides["storage"] = storage
    if dashboard:
        overrides["pages"] = ["dashboard"]
    import asyncio
    import signal

    # It waits until the server runs: before, it would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    plugins = invocation.load_plugins(overrides=overrides, defaults={"storage": "sqlite"})

    from fcp_core.server.logs import configure_logging
    from fcp_core.server.own_process import allow_files
    from fcp_core.server.server import Server

    configure_logging(logging.getLogger().level, plugins.config.get("log_format"))
    # What happens to the server is said; what happens to each device is for --verbose.
    if not logging.getLogger().isEnabledFor(logging.INFO):
        for name in ("fcp.server", "fcp.services"):
            logging.getLogger(name).setLevel(logging.INFO)
    allow_files(plugins.config.get("max_connections"))
    server = Server.from_config(plugins)
    for plugin in plugins.plugins:
        logger.info("%s implements %s", plugin.source, ", ".join(plugin.hooks))
    asyncio.run(_serve(server))


async def _serve(server: Server) -> None:
    import asyncio
    import signal

    from fcp_core.server.own_process import serve_alone

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        logger.info("%s: stopping; once more to stop at once", number.name)
        stop.set()
        # The second signal does what it does to any program.
        for other in signals:
            loop.remove_signal_handler(other)

    def on_hangup() -> None:
        logger.info("SIGHUP: reading certificates and keys again")
        server.reload()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    await server.start()
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    serve_alone()
    try:
        await stop.wait()
    finally:
        await server.stop()
    logger.info("stopped")
