"""The one exception of the package: a request that cannot be met, said in words."""


class QuantError(ValueError):
    """A model, setting or engine that cannot be quantized as asked; the message says what to change."""
