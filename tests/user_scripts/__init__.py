"""Scripts as users write them. tests/test_user_scripts.py runs them and checks them with mypy and pyright."""
