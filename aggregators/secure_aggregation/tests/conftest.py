"""Examples without a clock, where these tests are run by themselves, too."""

from hypothesis import settings

settings.register_profile("fcp", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("fcp")
