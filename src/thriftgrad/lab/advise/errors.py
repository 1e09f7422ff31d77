"""What the user of ``advise`` can mend."""


class AdviseError(ValueError):
    """There is nothing to advise on as asked."""
