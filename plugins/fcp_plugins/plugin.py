"""The built-in policies, storages, engines and protocols, registered like anybody's."""
