"""The built-in policies, storages, engines and protocols."""
