"""A dictionary whose entries have an end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.rounds.expiring import Expiring


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=30),
    st.integers(0, 10),
)
def test_expiring_is_a_dictionary_with_ends(steps, now):
    expiring, model = Expiring(), {}
    for key, expires, put in steps:
        if put:
            expiring.put(key, (key, expires), expires)
            model[key] = expires
        else:
            expiring.pop(key)
            model.pop(key, None)
    assert len(expiring) == len(model)
    assert expiring.next_expiry() == min(model.values(), default=None)
    due = {key for key, expires in model.items() if expires <= now}
    assert {key for key, _ in expiring.pop_due(now)} == due
    assert {key for key, _ in expiring} == set(model) - due
    assert all((key in expiring) == (key in model and key not in due) for key in "abc")
