"""The protocol's messages; the modules are generated, the .proto files are the source."""
