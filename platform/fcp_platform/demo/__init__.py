"""The demonstration that `fcp demo` runs."""
