"""A configuration that is loaded from a folder."""

from fcp_core.plugins.config import Sources, load_config


def load(registry, folder, environ=None, **overrides):
    sources = Sources(working_folder=folder, environ=environ or {}, overrides=overrides)
    return load_config(registry, sources)


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
