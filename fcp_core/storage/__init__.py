"""The storage contract and the records that go through it."""
