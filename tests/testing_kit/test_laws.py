"""Laws that do not apply to a subclass of a kit are not collected there, and nowhere else lost."""

from fcp_core.testing.laws import Laws, applies_if


class Kit(Laws):
    strict = False

    def test_always(self):
        """It applies to every subclass."""

    @applies_if(lambda kit: kit.strict)
    def test_strict(self):
        """It applies to strict ones."""


class Lax(Kit):
    pass


class Strict(Lax):
    strict = True


class Own(Kit):
    def test_strict(self):
        """What a subclass defines itself is no law of the kit's."""


class Below(Own):
    pass


def collected(kit):
    return [name for name in ("test_always", "test_strict") if callable(getattr(kit, name))]


def test_a_law_that_does_not_apply_is_not_collected():
    assert collected(Lax) == ["test_always"]
    for kit in (Kit, Strict, Own, Below):
        assert collected(kit) == ["test_always", "test_strict"]
    assert Strict.test_strict is Kit.test_strict
    assert Below.test_strict is Own.test_strict
