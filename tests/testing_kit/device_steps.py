"""What a device's side of a protocol does, step by step, with something in between."""


def each(steps, carry):
    """Yield a device's steps, each by way of *carry*: a generator that returns the answer."""
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            return
        answer = yield from carry(step)
