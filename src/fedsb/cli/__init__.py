"""Commands: parse, call, print."""


def main() -> None:
    """The command `fedsb`, imported when it is called."""
    from fedsb.cli import app

    app.main()
