"""A plan that devices evaluate."""

DATA = {"collection_uri": "app:/taps"}


def asked(device, response):
    """Return the names of the policies of each task, as the device is told."""
    spec = device.spec(response)
    names = [policy.name for policy in spec.eligibility_policies]
    return {
        info.task_name: {names[index] for index in info.eligibility_policy_indices}
        for info in spec.task_info
    }
