"""The fuzzer: requests that no device would send, while an honest task goes on."""
