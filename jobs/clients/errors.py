"""The error of a request that what was asked refuses, whatever it is."""


class InvalidRequest(ValueError):
    """An image, or a kind of answer, that is refused: the server's own words in one line, and its status if known."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status
