"""Settings of hypothesis for every test: no time limits (machines are shared), and the same examples each run."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tinygpt", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tinygpt")
