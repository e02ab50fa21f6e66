"""Which member is to receive an upload: the one that has least to do, as its processor time tells.

An owner has more to do than to receive uploads: calls of all devices come to it. How much that is,
and how much an upload is, follows from what members used since they said so last, and how many
devices they were sent.
"""

from __future__ import annotations

from collections.abc import Mapping

#: How much the last time counts in what an upload is thought to take.
WEIGHT = 0.3
#: What a byte of one is thought to take before anything is known, in seconds.
GUESS = 2e-9
#: How much of what a member had to do is remembered the next time: who had more is sent less.
MEMORY = 0.7
#: How many uploads one member is sent in a row: what comes together is stored by one write, and
#: each write is of as many bytes as the model.
RUN = 12


class Share:
    """What one member has to do.

    :ivar free: for how many bytes of uploads it has room, as it said last.
    :ivar named: how many devices were sent there since.
    """

    def __init__(self) -> None:
        self.free = self.named = 0
        #: The seconds of processor time that it had used, as it said last.
        self._used: float | None = None
        #: How many it used from one time to the next, with how many uploads; and in times before,
        #: which count for less and less.
        self.seconds, self.uploads, self.lately = 0.0, 0, 0.0

    def told(self, free: int, used: float) -> None:
        """Note what it says.

        :param used: the processor time of its process, in seconds.
        """
        if self._used is not None:
            self.seconds, self.uploads = max(0.0, used - self._used), self.named
            self.lately = MEMORY * (self.lately + self.seconds)
        self.free, self.named, self._used = free, 0, used

    def room(self, size: int) -> int:
        """Return how much room it has if all uploads are of so many bytes."""
        return self.free - self.named * size


#: Uploads from this size on are worth the calls that it takes to have another member receive them.
LARGE = 64 << 10


class Placing:
    """Chooses among members, by whatever they are known by.

    :ivar shares: what each has to do, by where it is to be sent uploads; ``""``: this one.
    """

    def __init__(self) -> None:
        self.shares = {"": Share()}
        #: What an upload is thought to take, in seconds of processor time.
        self._upload = 0.0
        #: Who is sent uploads at the moment, and how many more.
        self._run, self._more = "", 0

    def place(self, size: int) -> str:
        """Return where a device is to send an upload: to the member that has least to do.

        :param size: of such uploads, in bytes; small ones are best received here.
        :returns: ``""`` for this member.
        """
        return self.choose(self.shares, size) if size >= LARGE and len(self.shares) > 1 else ""

    def learn(self, shares: Mapping[str, Share]) -> None:
        """Take what members used since the last time."""
        # Whoever had least to do beside.
        found = [share.seconds / share.uploads for share in shares.values() if share.uploads]
        if found:
            weight = WEIGHT if self._upload else 1.0
            self._upload += weight * (min(found) - self._upload)

    def choose(self, shares: Mapping[str, Share], size: int) -> str:
        """Return which member is to receive an upload, and the next ones; of equals the last.

        :param size: of such uploads, in bytes.
        """
        able = {key: share for key, share in shares.items() if share.room(size) >= size}
        self._more -= 1
        if not able:
            self._run = max(shares, key=lambda key: shares[key].room(size))
        elif self._more < 0 or self._run not in able:
            upload = self._upload or GUESS * size
            self._run = min(reversed(able), key=lambda key: _expected(able[key], upload))
            self._more = RUN - 1
        shares[self._run].named += 1
        return self._run


def _expected(share: Share, upload: float) -> float:
    """Return what a member had to do, and will have to before it says so again.

    :param upload: what an upload takes.
    """
    beside = max(0.0, share.seconds - share.uploads * upload)
    return share.lately + beside + share.named * upload
