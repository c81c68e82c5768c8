"""The findings of the security audit as tests; each test names its finding."""
