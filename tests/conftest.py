"""Settings that all tests share."""

from hypothesis import Phase, settings

# The same examples in every run, so that a change is judged by what it changes. To look for new
# ones: pytest --hypothesis-profile=search.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, phases=[Phase.reuse, Phase.generate])
settings.load_profile("fixed")
